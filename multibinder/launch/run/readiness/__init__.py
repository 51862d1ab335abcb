"""The ways in which a new copy shows that it is ready: one module each, and ``choice`` knows them."""
