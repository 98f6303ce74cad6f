"""A row becomes vectors: formats → templates → packing → attention → reader. Knows no directions and no margins."""
