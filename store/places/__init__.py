"""Where the objects of a store lie: a folder, a bucket, or the web."""
