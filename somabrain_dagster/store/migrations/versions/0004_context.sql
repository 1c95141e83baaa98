-- What assembling contexts needs: token usage that names the recall whose context it was.

ALTER TABLE token_usage ADD COLUMN recall_id bigint;
COMMENT ON COLUMN token_usage.recall_id IS 'The recall whose context took the tokens; null for other usage. '
    'A recall is counted once.';
