"""How the bundled `tiny` model was made. Run in this order: gather, encode, train, card. See the README in it."""
