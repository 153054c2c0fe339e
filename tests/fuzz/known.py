"""Findings that are not mended yet: file of the corpus and reason. A listed case that is mended must be removed."""

KNOWN = {
    "operators/c36e7fb953c4.json": "session_batch accepts tensors on two devices",
    "operators/f01ae38670df.json": "laplacian_propagation accepts tensors on two devices",
    "checkpoints/a7cb3763d2dd.json": "a missing weight is a RuntimeError of torch with several lines",
}
