rule publish:
    input:
        student=rules.retrain.output.model,
        prompts=rules.encode_prompts.output.index,
        metrics=rules.evaluate.output.metrics,
        samples=rules.evaluate.output.samples,
        architecture=rules.assemble.output.architecture,
        given=find_teacher_card(),
        code=find_code("publish"),
    output:
        model=name_student("results/model"),
        card="results/model/README.md",
        samples="results/model/samples.png",
    log:
        "logs/publish/publish.log",
    conda:
        "../envs/stagecraft.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=30,
    params:
        config=select_params("publish"),
    shell:
        "python -m stages.publish --params {params.config:q} --threads {threads} "
        "--student results/student --prompts data/prompts --metrics {input.metrics:q} --samples {input.samples:q} "
        "--architecture {input.architecture:q} --teacher-card {input.given:q} --output results/model "
        "2>&1 | tee {log:q}"
