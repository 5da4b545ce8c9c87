"""The forms in which labelled images lie on a disk or in a bucket; `distill.data` opens them."""
