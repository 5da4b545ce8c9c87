"""One module per data format; each lists samples as one table."""
