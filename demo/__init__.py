"""The whole job on one machine; see ``__main__``."""
