"""What a run has to say, in words and as a picture. Reads run folders only."""

from blend.report.text import polish_in_words, print_course, print_result, runs_table, summaries, summary

__all__ = ["polish_in_words", "print_course", "print_result", "runs_table", "summaries", "summary"]
