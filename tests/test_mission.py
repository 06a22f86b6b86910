"""What five public write-ups ask of a tool, a row a demand: what shows that it is met, what is not met yet.

The IDs are those of ../shared/mission.md, S0 to S4 by write-up; docs/from-the-tutorials names them too.
"""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from test_docs import ROOT, headings

TESTS = ROOT / "tests"
DOCS = ROOT / "docs"

DEMANDS: dict[str, tuple[str, ...]] = {
    # 0: P-Tuning v2 on ChatGLM2-6B with rows of one's own
    "S0-01": (
        "number of parameters; memory to train and to answer by bit width",
        "parity/test_parameter_counts.py::test_full_sizes_have_the_published_parameter_counts",
        "test_memory_tables.py::test_a_page_holds_its_table_of_memory",
        "memory.md#published-figures-and-ours",
    ),
    "S0-02": (
        "context lengths and published scores of the generations",
        "generations.md#the-claims-of-chatglm2-6b",
    ),
    "S0-03": (
        "chat, later turns and other knowledge are lost: warned of, measured, replayed; a knowledge base",
        "unit/workflows/test_forgetting.py::test_a_plan_like_one_that_lost_chat_is_warned_of",
        "invariants/test_retention.py::test_figures_are_those_of_both_models_run_row_by_row",
        "invariants/test_replay.py::test_answers_of_an_earlier_run_are_taken",
        "forgetting.md#the-report",
        "unit/data/test_mixture.py::test_a_ratio_is_a_part_of_the_whole_and_the_others_share_the_rest",
        "data.md#shares-of-an-epoch",
        "troubleshooting.md#ordinary-chat-is-lost",
        "unit/serve/test_knowledge_base.py::test_the_model_reads_the_passages_and_its_answer_is_shown",
        "knowledge-base.md#ask",
    ),
    "S0-04": (
        "memory on one card and two; larger batches at an equal product",
        "invariants/test_loop.py::test_the_size_of_the_micro_batches_does_not_matter",
        "invariants/test_memory.py::test_less_memory_means_smaller_micro_batches_then_recomputation_and_the_same_losses",
        "methods.md#memory",
    ),
    "S0-05": (
        "installation, scores included; links to P-Tuning v2, QLoRA and both models",
        "test_torch_index.py::test_the_index_fits_the_machine",
        "quickstart.md#1-install",
        "from-the-tutorials/0-ptuning-own-data.md#references",
    ),
    "S0-06": (
        "ADGEN's rows as lines or as an array; a broken array is named by line and column",
        "unit/data/test_reader.py::test_json_lines_and_an_array_of_the_same_rows_give_the_same_messages",
        "unit/data/test_reader.py::test_broken_json_is_named_by_line_column_and_text",
        "data.md#one-question-one-answer",
    ),
    "S0-07": (
        "files of training, validation and test, and columns of any names",
        "unit/data/test_formats.py::test_named_columns_are_taken_whatever_their_names",
        "unit/workflows/test_rows.py::test_without_test_rows_an_evaluation_answers_the_validation_file_whole",
        "settings.md#settings",
    ),
    "S0-08": (
        "rows with a history; what is cut of them is said",
        "test_tutorials.py::test_write_up_0_conversations_are_tuned_evaluated_and_gone_on_with",
        "unit/data/test_formats.py::test_history_comes_before_the_question_as_messages",
        "unit/data/test_encode.py::test_every_row_is_in_the_report",
    ),
    "S0-09": (
        "train.sh with all its flags, on two cards",
        "unit/migration/test_recipes.py::test_the_write_up_s_script_becomes_the_recipe_that_was_written_from_it",
        "test_recipes.py::test_a_recipe_sets_what_its_source_sets",
        "invariants/test_runs.py::test_two_processes_equal_one",
    ),
    "S0-10": (
        "comments behind a backslash",
        "unit/migration/test_shell.py::test_a_command_that_the_shell_would_end_too_early_is_read_on_and_said",
    ),
    "S0-11": (
        "samples and epochs of a number of steps are said before the start",
        "unit/workflows/test_plan.py::test_the_plan_gives_updates_samples_and_epochs_of_all_processes",
        "unit/workflows/test_forgetting.py::test_a_plan_like_one_that_lost_chat_is_warned_of",
    ),
    "S0-12": (
        "evaluate.sh: answers and scores of a checkpoint",
        "test_tutorials.py::test_write_up_0_conversations_are_tuned_evaluated_and_gone_on_with",
        "unit/migration/test_recipes.py::test_an_evaluation_script_becomes_its_recipe_and_a_command",
    ),
    "S0-13": (
        "the loading code for a prefix, and a folder that needs none of it",
        "parity/test_prefix_goldens.py::test_the_write_ups_own_loading_code_gives_the_logits_of_an_opened_folder",
        "unit/models/test_prefix.py::test_on_a_half_base_the_prefix_stays_in_fp32_and_the_logits_in_half",
    ),
    "S0-14": (
        "talking to the tuned model on a page; that single questions tune the first turn alone",
        "test_web_in_a_browser.py::test_a_question_is_answered_stopped_retried_edited_and_cleared",
        "unit/migration/test_recipes.py::test_the_web_demo_becomes_a_command_and_no_file",
        "troubleshooting.md#later-turns-are-ignored",
    ),
    "S0-15": (
        "where the model lies: path and revision are printed, any folder is taken",
        "cli/test_hub.py::test_a_run_on_a_hubs_model_pins_its_revision_and_finds_it_again",
        "test_tutorials.py::test_a_folder_in_a_hubs_cache_is_taken_as_it_lies_there",
        "models.md#where-a-model-comes-from",
    ),
    "S0-16": (
        "another model's tokenizer",
        "parity/test_token_goldens.py::test_genuine_tokenizers_fit_their_models_and_no_others",
        "troubleshooting.md#the-tokenizer-of-another-model",
    ),
    "S0-17": (
        "no process group, because of a trainer of 2023",
        "unit/explanations/test_table.py::test_a_log_is_explained_by_its_row_first",
        "invariants/test_runs.py::test_two_processes_equal_one",
    ),
    "S0-18": (
        "ragged rows, taken for a lack of memory",
        "unit/explanations/test_table.py::test_a_log_is_explained_by_its_row_first",
        "invariants/test_packed.py::test_packed_rows_have_the_loss_and_gradients_of_one_row_at_a_time_and_of_padded_ones",
        "invariants/test_runs.py::test_an_error_of_all_processes_is_told_once",
    ),
    "S0-19": (
        "a page of the differences between the generations",
        "generations.md#from-chatglm-6b-to-chatglm2-6b",
        "generations.md#chat-format",
        "generations.md#for-tuning",
    ),
    # 1: LoRA on ChatGLM3-6B-base
    "S1-01": (
        "theory: kinds of pre-training, blank infilling, positions, shuffled blanks",
        "test_how_glm_works.py::test_part_a_sees_itself_and_part_b_sees_what_stands_before",
        "test_how_glm_works.py::test_a_blanks_words_are_placed_at_its_mask_and_counted_from_1",
        "how-glm-works.md#three-families-and-a-fourth",
        "how-glm-works.md#blank-infilling",
    ),
    "S1-02": (
        "the chat format, its ids by build_chat_input, and decoded",
        "parity/test_token_goldens.py::test_chat_encodings_are_the_official_ones",
        "generations.md#chat-format",
    ),
    "S1-03": (
        "a data set that was saved to disk or lies on a hub; a look at its first row",
        "unit/data/test_tables.py::test_the_real_package_saves_and_loads",
        "cli/test_data.py::test_stats_show_the_first_row_as_it_is_read_and_no_zeros",
        "data.md#kinds-of-files",
    ),
    "S1-04": (
        "a model of ModelScope's, downloaded first",
        "unit/test_hub.py::test_modelscopes_package_is_asked_for_the_same_files",
        "models.md#get-one",
    ),
    "S1-05": (
        "the tokenizer printed",
        "test_tutorials.py::test_the_printed_tokenizer_has_the_published_facts",
        "cli/test_info.py::test_a_folder_is_told_within_80_columns",
    ),
    "S1-06": (
        "rows to ids and labels: the question unlearned, the end token learned, nothing by hand",
        "unit/data/test_encode.py::test_every_row_ends_with_its_learned_stop_token_and_fits",
        "unit/data/test_formats.py::test_an_alpaca_input_follows_the_instruction_on_a_new_line",
    ),
    "S1-07": (
        "both checks: the row as it is read, and what is learned of it",
        "test_tutorials.py::test_write_up_1_a_base_model_learns_to_chat_from_a_saved_data_set",
        "cli/test_verbs.py::test_training_says_what_it_does",
    ),
    "S1-08": (
        "half precision without a copy in memory, and the type said",
        "unit/test_load.py::test_the_chosen_type_is_said",
        "unit/models/test_published_weights.py::test_loading_takes_no_more_anonymous_memory_than_the_weights_and_a_tenth",
    ),
    "S1-09": (
        "every parameter's name, before and after LoRA is put on",
        "cli/test_info.py::test_every_name_is_listed_and_what_is_trained_is_marked",
        "methods.md#see-what-is-trained",
    ),
    "S1-10": (
        "LoRA's settings, printed",
        "test_recipes.py::test_a_recipe_sets_what_its_source_sets",
        "methods.md#choosing-r-alpha-and-the-rate",
    ),
    "S1-11": (
        "the line of trained parameters, with its arithmetic",
        "unit/methods/test_methods.py::test_lora_on_a_published_chatglm3_counts_its_parameters_without_weights",
        "methods.md#lora",
    ),
    "S1-12": (
        "each setting of the training explained; steps that follow from rows and batch",
        "unit/recipe/test_parse.py::test_every_setting_has_words_and_appears_once",
        "unit/training/test_guard.py::test_adam_in_fp16_arithmetic_has_fp32_moments_in_which_its_epsilon_lives",
        "settings.md#settings",
    ),
    "S1-13": (
        "training, then an answer",
        "test_tutorials.py::test_write_up_1_a_base_model_learns_to_chat_from_a_saved_data_set",
        "unit/models/test_official_chat.py::test_chat_answers_what_generate_gives_for_the_encoded_messages",
    ),
    "S1-14": (
        "another family's layers; words about labels and rates that are not so; answers cut behind their end",
        "unit/methods/test_methods.py::test_an_unknown_target_is_answered_with_the_valid_names",
        "unit/data/test_encode.py::test_a_long_answer_leaves_a_question_its_share_and_keeps_its_end_token",
        "methods.md#choosing-r-alpha-and-the-rate",
    ),
    # 2: P-Tuning against LoRA, one card against two
    "S2-01": (
        "its rows, and a test file that is the training file",
        "test_tutorials.py::test_write_up_2_two_methods_and_two_cards_are_compared_step_by_step",
        "troubleshooting.md#the-validation-file-is-the-training-file",
    ),
    "S2-02": (
        "the chat on one of several cards; a container",
        "from-the-tutorials/2-ptuning-or-lora.md#what-it-types-what-you-type",
        "serve.md#in-a-container",
    ),
    "S2-03": (
        "the words of its terminal chat",
        "cli/test_chat.py::test_the_greeting_names_what_is_talked_to",
        "cli/test_chat_terminal.py::test_the_first_question_is_left",
    ),
    "S2-04": (
        "the same prompts before and after",
        "unit/report/test_compare.py::test_answers_are_those_of_the_best_evaluation_to_prompts_of_two_runs",
        "cli/test_chat.py::test_a_comparison_gives_the_answers_of_both_alone",
        "unit/workflows/test_before_after.py::test_a_run_asks_before_step_1_and_at_the_end_and_shows_both",
        "unit/workflows/test_before_after.py::test_an_answer_is_right_by_its_last_number",
        "report.md#the-same-questions-before-and-after",
    ),
    "S2-05": (
        "its four scripts",
        "test_tutorials.py::test_write_up_2_two_methods_and_two_cards_are_compared_step_by_step",
    ),
    "S2-06": (
        "its P-Tuning run, and the line of its time",
        "test_recipes.py::test_a_recipe_sets_what_its_source_sets",
        "unit/training/test_progress.py::test_run_time_reads_as_the_write_ups_print_it",
    ),
    "S2-07": (
        "its LoRA run",
        "test_recipes.py::test_a_recipe_sets_what_its_source_sets",
    ),
    "S2-08": (
        "two cards: the percentage ends at 100, with as many updates",
        "test_tutorials.py::test_write_up_2_two_methods_and_two_cards_are_compared_step_by_step",
    ),
    "S2-09": (
        "the line of progress with the time left",
        "unit/training/test_progress.py::test_the_line_has_the_published_form_with_speed_and_memory_added",
    ),
    "S2-10": (
        "losses of both methods at the same steps: LoRA's is far below",
        "invariants/test_lora_and_ptuning.py::test_loras_loss_is_far_below_ptunings_at_equal_steps",
        "compare.md#lora-or-p-tuning-v2",
    ),
    "S2-11": (
        "pictures of losses and memory; one evaluation can be seen too",
        "unit/report/test_plots.py::test_a_single_evaluation_can_be_seen",
        "unit/report/test_memory_picture.py::test_all_parts_and_the_limit_are_seen",
        "unit/report/test_page.py::test_several_runs_are_side_by_side_with_the_reasons_not_to_compare_them",
    ),
    "S2-12": (
        "more rows and epochs, types that lose information, limits that lose answers, answers that drift",
        "limits.md#look-first",
        "troubleshooting.md#ordinary-chat-is-lost",
        "test_method_tables.py::test_a_page_holds_its_tables_of_methods",
        "methods.md#the-price-of-a-quantised-base",
    ),
    "S2-13": (
        "how P-Tuning works; both methods on several turns; weak sides of LoRA",
        "methods.md#several-turns-lora-against-p-tuning",
        "methods.md#loras-weak-sides-and-its-strong-ones",
        "unit/report/test_compare.py::test_scores_of_turns_stand_beside_each_other_and_in_the_picture",
        "test_how_glm_works.py::test_the_guides_counts_are_those_of_the_methods",
        "how-glm-works.md#p-tuning-v2",
    ),
    "S2-14": (
        "the lines about saved models and evaluations",
        "unit/workflows/test_show.py::test_a_better_evaluation_and_its_checkpoint_are_one_line_in_the_official_words",
    ),
    "S2-15": (
        "its references",
        "from-the-tutorials/2-ptuning-or-lora.md#references",
    ),
    # 3: AdaLoRA on a handful of rows
    "S3-01": (
        "a notebook; paths of Windows",
        "test_notebook.py::test_every_cell_runs_twice_and_again_in_a_new_kernel",
        "quickstart.md#windows",
    ),
    "S3-02": (
        "all its settings in one place",
        "test_recipes.py::test_a_recipe_sets_what_its_source_sets",
        "from-the-tutorials/3-few-shot-adalora.md#what-it-types-what-you-type",
    ),
    "S3-03": (
        "types and special ids said; a chat before tuning",
        "test_tutorials.py::test_write_up_3_a_few_rows_are_learned_pruned_merged_and_saved_in_shards",
        "unit/test_info.py::test_stop_tokens_context_and_tokenizer_are_the_folders",
    ),
    "S3-04": (
        "lines of question and answer, looked at",
        "cli/test_data.py::test_stats_show_the_first_row_as_it_is_read_and_no_zeros",
    ),
    "S3-05": (
        "its preprocessing: empty rows, prefix, cuts, end token, labels",
        "parity/test_preprocess_goldens.py::test_thudm_rows_are_the_official_ones",
        "unit/data/test_empty.py::test_a_row_without_question_or_answer_is_left_out_of_every_format_counted_and_named",
    ),
    "S3-06": (
        "shuffled batches",
        "invariants/test_runs.py::test_the_trained_set_of_rows_covers_every_epoch_once",
    ),
    "S3-07": (
        "no cache while training, and layers computed again",
        "unit/models/test_integration.py::test_no_cache_is_built_while_training_unless_asked_for",
        "unit/models/test_integration.py::test_lora_trains_under_gradient_checkpointing",
    ),
    "S3-08": (
        "AdaLoRA with its count of parameters",
        "unit/methods/test_adalora.py::test_adalora_on_a_published_chatglm2_counts_its_parameters_without_weights",
        "methods.md#adalora",
    ),
    "S3-09": (
        "mixed precision, clipping, the loss of all processes, the rate, answers while it trains",
        "invariants/test_loop.py::test_the_loop_equals_the_trainer_step_by_step",
        "cli/test_verbs.py::test_a_run_leaves_its_files",
    ),
    "S3-10": (
        "early stopping, with the adapter of the best evaluation",
        "invariants/test_runs.py::test_early_stopping_keeps_the_best_checkpoint",
    ),
    "S3-11": (
        "opened again, merged, talked to",
        "test_tutorials.py::test_write_up_3_a_few_rows_are_learned_pruned_merged_and_saved_in_shards",
        "invariants/test_export_matrix.py::test_an_export_answers_as_the_tuned_model_or_is_refused_by_name",
    ),
    "S3-12": (
        "saved in files of 2 GB, with all its small files",
        "unit/exports/test_tensors.py::test_shards_are_as_full_as_they_may_be_and_the_index_says_where_each_tensor_lies",
        "parity/test_export_goldens.py::test_names_shapes_types_and_small_files_are_the_bases",
    ),
    "S3-13": (
        "targets that are not there, ranks never pruned, a rank called a rate, rows validated on, two names",
        "unit/migration/test_recipes.py::test_targets_that_do_not_exist_are_mended",
        "unit/migration/test_recipes.py::test_adalora_s_ignored_rank_is_named",
        "unit/methods/test_adalora.py::test_the_sum_of_ranks_is_what_was_asked_for_and_without_the_schedule_it_is_not",
        "troubleshooting.md#the-validation-file-is-the-training-file",
    ),
    # 4: ChatGLM-6B and ChatGLM2-6B in three ways
    "S4-01": (
        "background: GLM, GLM-130B, positions, masks",
        "parity/test_chatglm_goldens.py::test_positions_are_the_official_ones",
        "how-glm-works.md#two-positions",
        "how-glm-works.md#from-glm-to-chatglm",
    ),
    "S4-02": (
        "the table of memory, and INT8 explained",
        "test_how_glm_works.py::test_the_worked_row_is_what_int8_makes_of_it",
        "how-glm-works.md#int8-in-three-steps",
        "test_memory_tables.py::test_a_page_holds_its_table_of_memory",
        "memory.md#published-figures-and-ours",
    ),
    "S4-03": (
        "a P100, which has neither INT4 nor INT8",
        "quickstart.md#4-tune-a-real-model",
        "troubleshooting.md#p100-and-v100-no-kernel-image",
    ),
    "S4-04": (
        "one environment for all generations, and folders in shards",
        "unit/models/test_published_weights.py::test_every_layout_opens_with_the_stored_values_in_the_asked_type",
        "quickstart.md#1-install",
    ),
    "S4-05": (
        "from Python, in the terminal, and on a page: Gradio's, Streamlit's and the public link",
        "test_web_in_a_browser.py::test_a_question_is_answered_stopped_retried_edited_and_cleared",
        "cli/test_web.py::test_a_public_page_answers_and_shows_but_starts_and_stops_nothing",
        "web.md#chat",
        "unit/models/test_integration.py::test_auto_classes_open_an_official_folder_without_remote_code",
        "cli/test_chat_terminal.py::test_lines_are_edited_pasted_found_again_and_left",
    ),
    "S4-06": (
        "Git LFS, local folders, revisions",
        "unit/models/test_published_weights.py::test_a_git_lfs_pointer_is_refused_by_name",
        "models.md#where-a-model-comes-from",
    ),
    "S4-07": (
        "Alpaca without converting it, and the converted file too",
        "test_tutorials.py::test_write_up_4_adverts_by_p_tuning_alpaca_on_int8_and_every_weight",
        "cli/test_data.py::test_the_guide_shows_a_row_of_every_format_that_loads",
    ),
    "S4-08": (
        "its errors: icetk, driver, CUDA 11, memory, types, a loss of 0",
        "unit/explanations/test_table.py::test_a_log_is_explained_by_its_row_first",
        "unit/training/test_guard.py::test_rows_without_answers_stop_the_run",
        "invariants/test_memory.py::test_what_does_not_fit_is_refused_with_settings_that_do",
        "troubleshooting.md#messages-of-other-tools",
        "troubleshooting.md#the-loss-or-the-gradient-is-exactly-0",
    ),
    "S4-09": (
        "P-Tuning v2 on ADGEN, its little memory, a broken connection",
        "test_tutorials.py::test_write_up_4_adverts_by_p_tuning_alpaca_on_int8_and_every_weight",
        "invariants/test_runs.py::test_a_resumed_run_equals_an_uninterrupted_one_bit_by_bit",
        "from-the-tutorials/4-three-ways.md#where-its-data-comes-from",
    ),
    "S4-10": (
        "no prefix encoder, because of older code in the folder",
        "unit/explanations/test_table.py::test_a_log_is_explained_by_its_row_first",
        "parity/test_prefix_goldens.py::test_a_prefix_has_the_official_names_shapes_and_count",
    ),
    "S4-11": (
        "memory in FP16, the curve of the loss, its checkpoints",
        "test_memory_tables.py::test_a_page_holds_its_table_of_memory",
        "unit/report/test_plots.py::test_both_curves_and_the_best_evaluation_can_be_seen",
        "unit/workflows/test_run_writer.py::test_the_newest_checkpoints_are_those_of_the_highest_steps",
    ),
    "S4-12": (
        "Chinese ROUGE and BLEU-4, answers in generated_predictions.txt",
        "parity/test_metric_goldens.py::test_all_pairs_together_score_as_the_official_script_scored_them",
        "cli/test_verbs.py::test_evaluation_scores_and_goes_on_where_it_was_stopped",
    ),
    "S4-13": (
        "one prompt before and after, in the terminal, on a page and as a picture",
        "test_web_in_a_browser.py::test_base_and_tuned_model_answer_one_prompt_side_by_side",
        "unit/report/test_card.py::test_the_card_has_answers_scores_time_memory_and_versions",
        "test_tutorials.py::test_write_up_4_adverts_by_p_tuning_alpaca_on_int8_and_every_weight",
    ),
    "S4-14": (
        "every weight trained; the share of an epoch that its steps are",
        "test_tutorials.py::test_write_up_4_adverts_by_p_tuning_alpaca_on_int8_and_every_weight",
        "unit/migration/test_recipes.py::test_full_fine_tuning_says_what_it_needs_and_what_needs_less",
        "unit/migration/test_recipes.py::test_weights_that_deepspeed_shared_out_are_shared_out_here",
        "invariants/test_engines.py::test_two_processes_of_an_engine_equal_one",
    ),
    "S4-15": (
        "checkpoints of the prefix alone, and whole ones",
        "unit/migration/test_weights.py::test_of_a_whole_save_the_prefix_alone_is_kept",
        "unit/adapters/test_own_weights.py::test_a_whole_official_model_with_its_prefix_opens_alone_and_on_its_base",
    ),
    "S4-16": (
        "rows of one's own: files, columns, limits that fit",
        "limits.md#look-first",
        "from-the-tutorials/0-ptuning-own-data.md#what-it-types-what-you-type",
    ),
    "S4-17": (
        "a tracker that asks for a login where nobody sits",
        "unit/workflows/test_trackers.py::test_a_run_without_a_login_is_kept_offline_and_told",
        "report.md#tensorboard-weights--biases-trackio",
    ),
    "S4-18": (
        "the memory while it trains, as a picture",
        "invariants/test_memory_record.py::test_the_parts_are_what_the_tensors_take",
        "methods.md#memory-that-a-run-took",
    ),
    "S4-19": (
        "a walk through the code; what answers are tidied to",
        "unit/models/test_official_chat.py::test_scores_that_are_not_finite_give_the_official_fallback",
        "unit/models/test_official_chat.py::test_chatglm_6b_s_answers_are_tidied_as_officially",
        "test_how_glm_works.py::test_the_traced_answer_is_the_chats",
        "how-glm-works.md#a-chat-step-by-step",
    ),
    "S4-20": (
        "ChatGLM2's attention",
        "parity/test_chatglm2_goldens.py::test_logits_are_the_official_ones",
        "test_how_glm_works.py::test_attention_block_by_block_is_attention",
        "how-glm-works.md#heads-that-share-keys",
        "how-glm-works.md#flashattention",
    ),
    "S4-21": (
        "names of checkpoints that its settings never make",
        "unit/migration/test_recipes.py::test_a_checkpoint_that_no_training_makes_is_mended",
    ),
}
"""By ID: the demand in our words, then what shows it: `file::test` of tests/ or `page#anchor` of docs/."""

MISSING: dict[str, str] = {}
"""Parts of a demand that nothing shows yet; docs/from-the-tutorials says so to its readers."""


@pytest.mark.shared
def test_every_demand_has_its_row(shared: Path) -> None:
    mission = (shared / "mission.md").read_text(encoding="utf-8")
    assert list(DEMANDS) == re.findall(r"^- (S\d-\d\d) ", mission, re.MULTILINE)


@pytest.mark.parametrize("demand", DEMANDS)
def test_what_shows_a_demand_is_there(demand: str) -> None:
    words, *places = DEMANDS[demand]
    assert words and places
    for place in places:
        file, separator, name = place.partition("::" if "::" in place else "#")
        if separator == "::":
            assert name in names_in(TESTS / file), place
        else:
            assert name in headings(DOCS / file), place


def test_what_is_missing_is_part_of_a_demand_and_told_to_the_reader() -> None:
    assert MISSING.keys() <= DEMANDS.keys()
    for index in ("README.md", "README.zh.md"):
        last = (DOCS / "from-the-tutorials" / index).read_text(encoding="utf-8").rpartition("\n## ")[2]
        assert set(re.findall(r"S\d-\d\d", last)) == set(MISSING)


@cache
def names_in(path: Path) -> set[str]:
    """The names of a file's functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
