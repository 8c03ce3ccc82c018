"""Where a time comes from: rooflines and measured tables behind one `estimate`."""
