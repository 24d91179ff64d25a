"""Pages: one self-contained HTML file each, with interactive plots (uPlot) and no network."""
