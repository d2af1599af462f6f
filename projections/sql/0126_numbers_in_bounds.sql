-- Numbers that agents write and views show or sum up. One that is out of every calendar, or makes a sum pass the end of bigint, would stop the whole
-- view for everybody. The row of such an event is refused; it is left out and stands in crewlog.problems.
-- rolling: what programs of before write fits, but for what would stop them

SET ROLE crewlog_projector;

-- At most 10^12 tokens a call, and 10^15 micro-USD as in the gate (MICRO_USD_MAX): ten million such calls still have a sum.
ALTER TABLE rm.model_calls
  ADD CONSTRAINT tokens_have_a_sum CHECK (least(input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, reasoning_tokens) >= 0
    AND greatest(input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, reasoning_tokens) <= 1000000000000) NOT VALID,
  ADD CONSTRAINT money_has_a_sum CHECK (least(cost_micro_usd, uncached_micro_usd) >= 0 AND greatest(cost_micro_usd, uncached_micro_usd) <= 1000000000000000)
    NOT VALID;

ALTER TABLE rm.approvals ADD CONSTRAINT expiry_has_a_date CHECK (expires_us BETWEEN 0 AND 253402300799999999) NOT VALID;
ALTER TABLE rm.providers ADD CONSTRAINT until_has_a_date CHECK (until_us BETWEEN 0 AND 253402300799999999) NOT VALID;

RESET ROLE;
