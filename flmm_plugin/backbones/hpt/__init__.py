"""HPT-Air and HPT-Air-1.5 from their published repositories."""
