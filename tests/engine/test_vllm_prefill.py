"""More prompt tokens than vLLM reads in one step: prompts wait for the next one, and none is read in pieces."""

from own_forward import SMALL, TOLERANCE, draw, errors

from rlhf_lightning.samplers import VLLMSampler


def test_more_prompts_than_a_step_reads(policy):
    model, tokenizer = policy
    sampler = VLLMSampler(max_new_tokens=12, engine={"max_num_batched_tokens": 128}, **SMALL)
    sampler.bind(*policy)
    questions = tuple(f"How much is {number} and {number}, please?" for number in range(10, 22))
    assert sum(len(tokenizer(question)["input_ids"]) for question in questions) > 2 * 128
    try:
        sampler.sync(1)
        rollout = draw(sampler, tokenizer, samples=4, questions=questions)
    finally:
        sampler.close()
    assert len(rollout.texts) == 48
    assert errors(model, rollout).max() < TOLERANCE
