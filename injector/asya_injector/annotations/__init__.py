"""What users may say: the annotations, the formats of their values, and how they are read."""
