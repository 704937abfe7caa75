"""The report of results: one HTML file with plots and their numbers, and the plots as images.

- `contents` is what a report consists of, before it is drawn; `of_run`, with `of_events` and
  `of_proxy`, `of_capacity`, `of_comparison` and `of_findings` say so for each kind of result, in common `words`;
- `chart` and `bars` draw plots as SVG on a `canvas`; `scale` is where values lie and how they are written;
- `page` writes the HTML, with `markup`; `page.css` and `plot.css` are its looks; `images` makes PNG files.
"""
