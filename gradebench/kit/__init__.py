"""What tasks on language models share: prompts, policies made or given, rewards, and the task that joins them."""
