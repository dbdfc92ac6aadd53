"""For publishers: cards made from measured results, and folders made ready for the Hub."""
