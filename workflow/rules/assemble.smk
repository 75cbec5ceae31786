rule assemble:
    input:
        teacher=rules.train_teacher.output.model,
        clusters=rules.cluster_timesteps.output.clusters,
        search=[rules.collect_search.output.index, rules.collect_search.input.reports],
        latency=rules.measure_latency.output.table,
        code=find_code("assemble"),
    output:
        architecture="results/architecture.json",
    log:
        "logs/assemble/assemble.log",
    conda:
        "../envs/stagecraft.yaml"
    threads: 1
    resources:
        mem_mb=8000,
        runtime=60,
    params:
        config=select_params("assemble"),
    shell:
        "python -m stages.assemble --params {params.config:q} --threads {threads} "
        "--teacher results/teacher --clusters {input.clusters:q} --search results/search --latency {input.latency:q} --output {output.architecture:q} "
        "2>&1 | tee {log:q}"
