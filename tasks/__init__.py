"""The pipeline: stages are the verbs at the top, their parts the nouns, one folder each."""
