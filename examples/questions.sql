-- Ten questions about a crew, answered from the public views (docs/views.md). examples/ten_questions.py asks them all; one alone is asked with
--   crewlog sql "select …"

-- 1. How are things going: how many runs are in which state, and for how long?
select status, count(*) as runs,
       round(avg(extract(epoch from coalesce(finished_at, now()) - submitted_at))::numeric, 1) as mean_seconds,
       max(submitted_at) as last_submitted
  from runs group by status order by runs desc;

-- 2. What did each user and model cost, and how much of it was for nothing?
select tenant, user_name, provider, model, sum(calls)::bigint as calls, round(sum(cost_micro_usd) / 1e6, 4) as usd,
       round(sum(failed_micro_usd + unused_micro_usd + worst_case_micro_usd) / 1e6, 4) as usd_lost,
       sum(unpriced_calls)::bigint as unpriced
  from costs group by tenant, user_name, provider, model order by usd desc, calls desc;

-- 3. Which runs were the most expensive, and which of their agents made them so?
select r.run_id, left(r.goal, 60) as goal, c.kind, round(sum(c.cost_micro_usd) / 1e6, 4) as usd, sum(c.input_tokens + c.output_tokens)::bigint as tokens
  from runs r join costs c on c.run_id = r.run_id
 group by r.run_id, r.goal, c.kind order by usd desc, tokens desc limit 10;

-- 4. How long do models take to answer, and how often do they fail?
select provider, model, count(*) as calls, percentile_cont(0.5) within group (order by latency_ms) as p50_ms,
       percentile_cont(0.95) within group (order by latency_ms) as p95_ms,
       count(*) filter (where status = 'failed') as failed
  from model_calls group by provider, model order by calls desc;

-- 5. Which tools are used, how long do they take, and what goes wrong with them?
select tool, effect, count(*) as calls, round(avg(latency_ms)) as mean_ms, count(*) filter (where status = 'error') as errors,
       count(*) filter (where starts > 1) as begun_again
  from tool_calls group by tool, effect order by calls desc;

-- 6. What failed, and why?
select error_code, count(*) as tasks, count(distinct run_id) as runs, min(left(error, 80)) as for_example
  from tasks where status = 'failed' group by error_code order by tasks desc;

-- 7. Which outcomes were sent back by a reviewer, and what did it object to?
select t.run_id, t.key, t.kind, t.verdict, i.value ->> 'code' as objection, left(i.value ->> 'message', 80) as message
  from tasks t cross join lateral jsonb_array_elements(t.issues) i
 where t.status = 'revised' or t.verdict in ('flagged', 'failed') order by t.finished_at desc limit 20;

-- 8. What did the crew do to the world outside, who allowed it, and can it be taken back?
select e.run_id, e.tool, e.status, a.actor as allowed_by, a.decided_at, e.finished_at
  from effects e left join approvals a on a.approval_id = e.approval_id
 where e.effect in ('compensable', 'irreversible') order by e.started_at desc limit 20;

-- 9. How long do people let the crew wait?
select tool, count(*) as asked, count(*) filter (where status = 'approved') as approved, count(*) filter (where status = 'pending') as pending,
       percentile_cont(0.5) within group (order by extract(epoch from coalesce(decided_at, now()) - requested_at)) as p50_seconds
  from approvals group by tool order by asked desc;

-- 10. Where does the time of a run go: how much of it is models, tools, people, and waiting in a queue?
select r.run_id, left(r.goal, 40) as goal, round(extract(epoch from r.finished_at - r.submitted_at)::numeric, 2) as seconds,
       (select round(coalesce(sum(m.latency_ms), 0) / 1e3, 2) from model_calls m where m.run_id = r.run_id) as in_models,
       (select round(coalesce(sum(c.latency_ms), 0) / 1e3, 2) from tool_calls c where c.run_id = r.run_id) as in_tools,
       (select round(coalesce(sum(extract(epoch from t.started_at - t.dispatched_at)), 0)::numeric, 2) from tasks t where t.run_id = r.run_id) as in_queues,
       (select round(coalesce(sum(extract(epoch from a.decided_at - a.requested_at)), 0)::numeric, 2) from approvals a where a.run_id = r.run_id) as with_people
  from runs r where r.finished_at is not null order by r.submitted_at desc limit 10;
