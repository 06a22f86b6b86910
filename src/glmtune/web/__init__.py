"""The page of `glmtune web`: talk to models, watch runs, start them. Gradio is imported in this package alone.

`desk` has the models, `talks` a conversation, `charts` the figures of runs, `order` a run to be started; none
of them knows Gradio. `chat_tab`, `runs_tab` and `train_tab` show them, `page` puts the tabs together.
"""
