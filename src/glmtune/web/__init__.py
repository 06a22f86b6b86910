"""The page of `glmtune web`: talk to models, watch runs, start them. Only this package imports Gradio.

`desk` has the models, `talks` a conversation, `watching` the runs, `order` a run to be started; none of them
knows Gradio. `chat_tab`, `runs_tab` and `train_tab` show them, `page` puts the tabs together.
"""
