"""The roof: wires everything once."""
