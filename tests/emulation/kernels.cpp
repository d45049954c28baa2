// trtrun's kernels for vision, called as functions: see tests/unit/vision/test_kernels_on_cpu.py.

#include "cuda_on_cpu.h"

#include "../../src/trtrun/cuda/kernels/postprocess.cu"
#include "../../src/trtrun/cuda/kernels/preprocess.cu"

extern "C" {
void run_select_f32(const Head* head, const Candidates* candidates, unsigned int batch) {
    const unsigned int blocks = (head->rows + 255) / 256;
    launch({blocks, batch, 1}, {256, 1, 1}, [=] { select_f32(*head, *candidates); });
}
void run_select_f16(const Head* head, const Candidates* candidates, unsigned int batch) {
    const unsigned int blocks = (head->rows + 255) / 256;
    launch({blocks, batch, 1}, {256, 1, 1}, [=] { select_f16(*head, *candidates); });
}
void run_select_faces_f32(const Faces* faces, const Candidates* candidates, unsigned int batch) {
    const unsigned int blocks = (faces->cells + 255) / 256;
    launch({blocks, batch, 1}, {256, 1, 1}, [=] { select_faces_f32(*faces, *candidates); });
}
void run_gather_f32(const Head* head, const Kept* kept, unsigned int batch) {
    launch({batch, 1, 1}, {256, 1, 1}, [=] { gather_f32(*head, *kept); });
}
void run_suppress(const Candidates* candidates, int rows, const Kept* kept, unsigned int batch) {
    launch({batch, 1, 1}, {THREADS, 1, 1}, [=] {
        if (candidates->angles) suppress_oriented(*candidates, rows, *kept);
        else suppress(*candidates, rows, *kept);
    });
}
void run_prepare(const Picture* pictures, const Target* target, int itemsize, const unsigned int* grid,
                 const unsigned int* block) {
    launch({grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, [=] {
        if (itemsize == 1) prepare_1(pictures, *target);
        if (itemsize == 2) prepare_2(pictures, *target);
        if (itemsize == 4) prepare_4(pictures, *target);
    });
}
}
