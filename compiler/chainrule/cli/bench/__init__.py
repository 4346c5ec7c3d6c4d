"""`chainrule bench`: training steps of this machine, side by side with whichever peers are here."""
