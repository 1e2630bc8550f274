"""The version of equikern, of which what is kept on disk depends."""

__version__ = "0.2.0"
