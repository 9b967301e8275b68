"""How the embedded `nano` is made: the recipe at toy scale. Nothing else imports it."""
