BLOCKS = name_blocks()


rule search_block:
    input:
        teacher=rules.train_teacher.output.model,
        features=rules.cache_features.output,
        importance=rules.rank_channels.output.importance,
        latency=rules.measure_latency.output.table,
        start=find_start,
        code=find_code("search_block"),
    output:
        report="results/search/{block}.json",
        weights="results/search/{block}.safetensors",
    log:
        "logs/search_block/{block}.log",
    wildcard_constraints:
        block="|".join(map(re.escape, BLOCKS)) or "none",
    conda:
        "../envs/stagecraft.yaml"
    threads: 1
    resources:
        mem_mb=8000,
        runtime=480,
        gpu=count_gpus(),
    params:
        config=select_params("search_block"),
    shell:
        "python -m stages.search_block --params {params.config:q} --threads {threads} "
        "--name {wildcards.block:q} --teacher results/teacher --features results/features --importance {input.importance:q} "
        "--latency {input.latency:q} --start {input.start:q} "
        "--output {output.report:q} --weights {output.weights:q} "
        "2>&1 | tee {log:q}"


rule collect_search:
    input:
        reports=expand(rules.search_block.output.report, block=BLOCKS),
        weights=expand(rules.search_block.output.weights, block=BLOCKS),
        code=find_code("collect_search"),
    output:
        index="results/search/index.json",
    log:
        "logs/collect_search/collect_search.log",
    conda:
        "../envs/stagecraft.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=30,
    params:
        config=select_params("collect_search"),
        names=BLOCKS,
    shell:
        "python -m stages.collect_search --params {params.config:q} --threads {threads} "
        "--names {params.names:q} --search results/search "
        "2>&1 | tee {log:q}"
