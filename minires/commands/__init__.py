"""The commands of `minires`."""
