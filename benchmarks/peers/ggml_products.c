/* Times products of llama.cpp's: rows of random numbers times random matrices of one type, on ggml's processor code.

       cc -O2 -I GGML/include ggml_products.c -L LIB -lggml-base -lggml-cpu -Wl,-rpath,LIB -o ggml_products
       ggml_products TYPE THREADS ROWS OUTPUTSxINPUTS ...

   Each line on standard input is a number of turns; the answer is the seconds of one turn, all matrices once, on average.
   Between lines its threads sleep. Weights lie in huge pages where the system has them: as fast as they can be read. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "ggml-cpu.h"
#include "ggml.h"

enum { MOST = 16, HUGE_PAGE = 2 << 20 };

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void* memory(size_t bytes) {
    char* p = mmap(NULL, bytes + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) exit(1);
    p += (HUGE_PAGE - (uintptr_t)p % HUGE_PAGE) % HUGE_PAGE;
    madvise(p, bytes, MADV_HUGEPAGE);
    return p;
}

static void fill(float* x, int64_t count) {
    for (int64_t i = 0; i < count; ++i) x[i] = (float)rand() / (float)RAND_MAX - 0.5f;
}

/* Every output is the same: only the time of a product matters. */
static void fill_weight(struct ggml_tensor* w) {
    const int64_t width = w->ne[0], outputs = w->ne[1];
    float* row = malloc((size_t)width * sizeof *row);
    fill(row, width);
    ggml_quantize_chunk(w->type, row, w->data, 0, 1, width, NULL);
    for (int64_t o = 1; o < outputs; ++o) memcpy((char*)w->data + (size_t)o * w->nb[1], w->data, w->nb[1]);
    free(row);
}

int main(int count, char** words) {
    if (count < 5 || count > 4 + MOST) return 2;
    enum ggml_type type = GGML_TYPE_COUNT;
    for (int i = 0; i < GGML_TYPE_COUNT; ++i)
        if (ggml_type_name(i) && !strcasecmp(ggml_type_name(i), words[1])) type = i;
    if (type == GGML_TYPE_COUNT) return 2;
    const int threads = atoi(words[2]), rows = atoi(words[3]);
    size_t bytes = 16 << 20;
    long long outputs[MOST], inputs[MOST];
    const int matrices = count - 4;
    for (int i = 0; i < matrices; ++i) {
        if (sscanf(words[4 + i], "%lldx%lld", &outputs[i], &inputs[i]) != 2) return 2;
        bytes += (size_t)outputs[i] * ggml_row_size(type, inputs[i]) + (size_t)rows * (size_t)(outputs[i] + inputs[i]) * 4;
    }
    ggml_cpu_init();
    struct ggml_context* context = ggml_init((struct ggml_init_params){bytes, memory(bytes), false});
    struct ggml_cgraph* graph = ggml_new_graph(context);
    for (int i = 0; i < matrices; ++i) {
        struct ggml_tensor* w = ggml_new_tensor_2d(context, type, inputs[i], outputs[i]);
        struct ggml_tensor* x = ggml_new_tensor_2d(context, GGML_TYPE_F32, inputs[i], rows);
        fill_weight(w);
        fill(x->data, ggml_nelements(x));
        ggml_build_forward_expand(graph, ggml_mul_mat(context, w, x));
    }
    struct ggml_threadpool_params wanted = ggml_threadpool_params_default(threads);
    struct ggml_threadpool* pool = ggml_threadpool_new(&wanted);
    struct ggml_cplan plan = ggml_graph_plan(graph, threads, pool);
    plan.work_data = plan.work_size ? malloc(plan.work_size) : NULL;
    ggml_graph_compute(graph, &plan);
    ggml_threadpool_pause(pool);
    printf("ready\n");
    fflush(stdout);
    for (int turns; scanf("%d", &turns) == 1;) {
        ggml_threadpool_resume(pool);
        const double begin = now();
        for (int i = 0; i < turns; ++i) ggml_graph_compute(graph, &plan);
        const double end = now();
        ggml_threadpool_pause(pool);
        printf("%.9f\n", (end - begin) / turns);
        fflush(stdout);
    }
    return 0;
}
