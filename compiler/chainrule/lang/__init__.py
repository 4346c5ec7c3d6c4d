"""The language users write: expressions, their derivatives, and compiling them."""
