"""What a model learns from: texts and records read, cleaned, made token ids and cut into the rows of a step."""
