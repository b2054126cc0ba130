"""This package turns results into figures, comparisons, charts and reports.

It reads run folders only, and knows no policy and no cost model.

    from loramux_analysis.load import load              # run folders and sweeps -> tables
    from loramux_analysis.compare import compare        # policies side by side, with intervals and
                                                        # paired differences
    from loramux_analysis.real import compare_real      # simulated against real
    from loramux_analysis.plots import draw_charts      # PNG, SVG and the CSV behind each
    from loramux_analysis.report import write_report    # all of it in one Markdown file
"""
