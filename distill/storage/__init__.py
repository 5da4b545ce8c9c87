"""Places that hold files: folders of this machine, S3 buckets, and the web."""
