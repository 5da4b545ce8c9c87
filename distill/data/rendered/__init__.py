"""Pictures that commands render, to try everything on."""
