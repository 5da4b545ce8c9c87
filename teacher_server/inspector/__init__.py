"""What a teacher believes of the images in a store: figures, tags to mend, pages to look at."""
