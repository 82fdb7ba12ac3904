"""``qanat-agent join``: from a token to a node that is attached, in steps that may break off anywhere."""
