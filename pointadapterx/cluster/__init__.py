"""The engine ``ray``: commands whose work a Ray cluster does, of this machine or of several."""
