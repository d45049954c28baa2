"""Pictures to results: geometry, preprocessing, postprocessing (one file per task), drawing. Knows only Runner."""
