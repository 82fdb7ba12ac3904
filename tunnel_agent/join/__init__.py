"""``qanat-agent join``: from a token to an attached node, in steps that may be interrupted at any point."""
