"""Mathematics without images."""
