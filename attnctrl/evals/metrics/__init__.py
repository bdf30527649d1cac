"""What is measured of a finished set of pictures."""
