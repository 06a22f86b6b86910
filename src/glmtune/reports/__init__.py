"""Reports on runs from their files alone: pictures, comparisons, lists."""
