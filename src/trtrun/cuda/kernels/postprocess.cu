// From the raw output of a YOLO head or of CenterFace to the boxes that are kept, in outputs of a fixed size.
//
//   select      each prediction's best class, its box, and whether it passes the score threshold; select_faces the
//               same of CenterFace's cells
//   suppress    greedy non-maximum suppression, one block per picture: the candidates in order of their anchors,
//               sorted by score (equal scores keep their order), then in rounds: the best 256 of those left are
//               compared with each other at once, one warp settles them, and those kept drop what they overlap
//   gather      what the head says beside box and classes of those that are kept
//
// Nothing depends on the order in which threads run. Sums and products are rounded one by one, as NumPy does, so that
// the same boxes are kept as by vision/postprocess.

#ifndef THREADS
#define THREADS 1024  // of a block of suppress
#endif

const int WARPS = THREADS / 32;
const int LIMIT = 1024;  // boxes kept for a picture, at most; as _LIMIT in vision/gpu.py
const int CHAINS = 256;
const int FEW = 4096;  // candidates that are sorted in shared memory
const int ROUND = 256;  // candidates that are settled at once
const int WORDS = ROUND / 32;
const unsigned int ALL = 0xffffffff;

enum { CENTERS, OBJECTNESS, GRID, ORIENTED };

struct Head {                       // as _Head in vision/gpu.py; strides count elements
    const void* values;             // of the network's output
    long long picture, row, column; // strides: from picture to picture, prediction to prediction, number to number
    int rows, classes, extras;      // predictions of a picture, and numbers of each beside box, objectness and classes,
    int first;                      // of which this is the first
    int kind;                       // GRID: objectness, and boxes in cells; ORIENTED: no objectness, an angle behind
                                    // the classes
    int width, height, levels;      // GRID: of the input, and how many strides from 8 up
    float threshold;                // a score must be above it
};

struct Candidates {  // as _Candidates in vision/gpu.py; per picture and prediction
    float* scores;   // 0: no candidate
    float4* boxes;   // x1, y1, x2, y2; ORIENTED: centre x and y, width, height
    int* classes;
    float* angles;   // ORIENTED: radians
};

struct Kept {        // as _Kept in vision/gpu.py; per picture, those beyond the count undefined
    int* counts;     // [B]
    float4* boxes;   // [B, most]
    float* scores;   // [B, most]
    int* classes;    // [B, most]
    int* rows;       // [B, most]
    float* extras;   // [B, most, extras]
    uint2* scratch;  // [B, 2, rows]: row and inverted score
    int most;
    int agnostic;    // 1: boxes of different classes drop each other, too
    float threshold; // overlapping more is too much
};

__device__ __forceinline__ float load(const float* value) { return *value; }

struct half_bits {
    unsigned short bits;
};

__device__ __forceinline__ float load(const half_bits* value) {
#ifdef __CUDA_ARCH__
    float result;
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value->bits));
    return result;
#else
    return half_on_host(value->bits);
#endif
}

__device__ __forceinline__ bool is_finite(float value) { return fabsf(value) <= 3.402823466e38f; }

__device__ __forceinline__ bool has_objectness(const Head& head) { return head.kind == OBJECTNESS || head.kind == GRID; }

template <typename Element>
__device__ __forceinline__ void select(const Head& head, const Candidates& candidates) {
    const int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= head.rows) return;
    const long long place = static_cast<long long>(blockIdx.y) * head.rows + row;
    const Element* values = static_cast<const Element*>(head.values) + blockIdx.y * head.picture + row * head.row;
    float best = -1.0f;
    int class_id = 0;
    float object = 1.0f;
    const bool objectness = has_objectness(head);
    if (objectness) object = load(values + 4 * head.column);
    if (object > head.threshold || !objectness) {  // probabilities are at most 1: nothing else can pass
        const Element* scores = values + (objectness ? 5 : 4) * head.column;
#pragma unroll 8
        for (int c = 0; c < head.classes; ++c) {
            float score = load(scores + c * head.column);
            if (objectness) score = __fmul_rn(score, object);
            if (score > head.threshold && score > best) {  // false for NaN; the first of equal ones
                best = score;
                class_id = c;
            }
        }
    }
    if (!(best > 0.0f)) {
        candidates.scores[place] = 0.0f;
        return;
    }
    float x = load(values), y = load(values + head.column);
    float width = load(values + 2 * head.column), height = load(values + 3 * head.column);
    if (head.kind == GRID) {
        int cell = row, stride = 8;
        for (int level = 1; level < head.levels; ++level) {
            const int cells = (head.width / stride) * (head.height / stride);
            if (cell < cells) break;
            cell -= cells;
            stride *= 2;
        }
        const int columns = head.width / stride;
        x = __fmul_rn(__fadd_rn(x, cell % columns), stride);
        y = __fmul_rn(__fadd_rn(y, cell / columns), stride);
        width = __fmul_rn(expf(width), stride);
        height = __fmul_rn(expf(height), stride);
    }
    float4 box = make_float4(x, y, width, height);
    float angle = 0.0f;
    if (head.kind == ORIENTED) {
        angle = load(values + (4 + head.classes) * head.column);
        candidates.angles[place] = angle;
    } else {
        width = __fmul_rn(width, 0.5f);
        height = __fmul_rn(height, 0.5f);
        box.x = __fsub_rn(x, width);
        box.y = __fsub_rn(y, height);
        box.z = __fadd_rn(x, width);
        box.w = __fadd_rn(y, height);
    }
    const bool somewhere = is_finite(angle) && is_finite(box.x) && is_finite(box.y) && is_finite(box.z) && is_finite(box.w);
    candidates.scores[place] = somewhere ? best : 0.0f;
    candidates.boxes[place] = box;
    candidates.classes[place] = class_id;
}

extern "C" __global__ void __launch_bounds__(256)
    select_f32(const __grid_constant__ Head head, const __grid_constant__ Candidates candidates) {
    select<float>(head, candidates);
}

extern "C" __global__ void __launch_bounds__(256)
    select_f16(const __grid_constant__ Head head, const __grid_constant__ Candidates candidates) {
    select<half_bits>(head, candidates);
}

struct Faces {  // as _Faces in vision/gpu.py: CenterFace's maps, [B, 1 or 2, rows, columns] of cells
    const void *heat, *scale, *offset;
    int cells, columns;
    float threshold;
};

template <typename Element>
__device__ __forceinline__ void select_faces(const Faces& faces, const Candidates& candidates) {
    const int cell = blockIdx.x * blockDim.x + threadIdx.x;
    if (cell >= faces.cells) return;
    const long long place = static_cast<long long>(blockIdx.y) * faces.cells + cell;
    const long long first = place + static_cast<long long>(blockIdx.y) * faces.cells;  // of two channels
    const float heat = load(static_cast<const Element*>(faces.heat) + place);
    candidates.scores[place] = 0.0f;
    if (!(heat > faces.threshold)) return;
    const Element *scale = static_cast<const Element*>(faces.scale) + first;
    const Element *offset = static_cast<const Element*>(faces.offset) + first;
    const float height = __fmul_rn(expf(load(scale)), 4.0f), width = __fmul_rn(expf(load(scale + faces.cells)), 4.0f);
    const double y = (cell / faces.columns + static_cast<double>(load(offset)) + 0.5) * 4;
    const double x = (cell % faces.columns + static_cast<double>(load(offset + faces.cells)) + 0.5) * 4;
    float4 box;
    box.x = static_cast<float>(x - __fmul_rn(width, 0.5f));
    box.y = static_cast<float>(y - __fmul_rn(height, 0.5f));
    box.z = static_cast<float>(x + __fmul_rn(width, 0.5f));
    box.w = static_cast<float>(y + __fmul_rn(height, 0.5f));
    const bool somewhere = is_finite(box.x) && is_finite(box.y) && is_finite(box.z) && is_finite(box.w);
    candidates.scores[place] = somewhere ? heat : 0.0f;
    candidates.boxes[place] = box;
    candidates.classes[place] = 0;
}

extern "C" __global__ void __launch_bounds__(256)
    select_faces_f32(const __grid_constant__ Faces faces, const __grid_constant__ Candidates candidates) {
    select_faces<float>(faces, candidates);
}

extern "C" __global__ void __launch_bounds__(256)
    select_faces_f16(const __grid_constant__ Faces faces, const __grid_constant__ Candidates candidates) {
    select_faces<half_bits>(faces, candidates);
}

__device__ __forceinline__ float area(const float4& box) {
    return __fmul_rn(__fsub_rn(box.z, box.x), __fsub_rn(box.w, box.y));
}

__device__ __forceinline__ bool overlap(const float4& a, const float4& b, float threshold) {
    const float width = fmaxf(__fsub_rn(fminf(a.z, b.z), fmaxf(a.x, b.x)), 0.0f);
    const float height = fmaxf(__fsub_rn(fminf(a.w, b.w), fmaxf(a.y, b.y)), 0.0f);
    const float both = __fmul_rn(width, height);
    if (both == 0.0f) return false;  // most pairs, without a division
    const float either = __fsub_rn(__fadd_rn(area(a), area(b)), both);
    const float iou = either > 0.0f ? __fdiv_rn(both, either) : 0.0f;
    return !(iou <= threshold);
}

struct Gaussian {  // with the variances and the covariance of the uniform distribution over an oriented box
    double xx, yy, xy;
};

__device__ __forceinline__ Gaussian gaussian(const float4& box, float angle) {
    const double along = static_cast<double>(box.z) * box.z / 12, across = static_cast<double>(box.w) * box.w / 12;
    const double c = cos(static_cast<double>(angle)), s = sin(static_cast<double>(angle));
    Gaussian found;
    found.xx = along * c * c + across * s * s;
    found.yy = along * s * s + across * c * c;
    found.xy = (along - across) * c * s;
    return found;
}

const double TINY = 1e-7;  // as in vision/postprocess/oriented_boxes.py

// NaN stays NaN, as with NumPy.
__device__ __forceinline__ double clipped(double value, double low, double high) {
    return value < low ? low : value > high ? high : value;
}

// Probabilistic IoU, as vision/postprocess/oriented_boxes.py computes it. ``reach`` is the Bhattacharyya distance from
// which on boxes do not overlap too much; for most pairs the centres tell: the distance is at least the square of theirs
// divided by 4 times the sum of all variances, which is more than the variance along any direction.
__device__ __forceinline__ bool overlap(
    const float4& a, float a_angle, const float4& b, float b_angle, float threshold, float reach) {
    const float x = a.x - b.x, y = a.y - b.y;
    const float variances = (a.z * a.z + a.w * a.w + b.z * b.z + b.w * b.w) * (1.0f / 12.0f);
    const bool extended = fminf(fminf(a.z, a.w), fminf(b.z, b.w)) >= 1.0f;  // else TINY counts
    if (extended && x * x + y * y > 4.0f * variances * reach) return false;
    const Gaussian one = gaussian(a, a_angle), other = gaussian(b, b_angle);
    const double p = one.xx + other.xx, q = one.yy + other.yy, r = one.xy + other.xy;
    const double determinant = fmax(p * q - r * r, 0.0);
    const double dx = static_cast<double>(a.x) - b.x, dy = static_cast<double>(a.y) - b.y;
    const double shifted = (p * dy * dy + q * dx * dx - 2 * r * dx * dy) / (determinant + TINY) / 4;
    const double own = one.xx * one.yy - one.xy * one.xy, others = other.xx * other.yy - other.xy * other.xy;
    const double product = sqrt(own < 0 ? 0 : own) * sqrt(others < 0 ? 0 : others);
    const double spread = log(determinant / (4 * product + TINY) + TINY) / 2;
    const double distance = clipped(shifted + spread, TINY, 100);
    return !(1 - sqrt(1 - exp(-distance) + TINY) <= threshold);
}

__device__ __forceinline__ float reach(float threshold) {
    const double left = 1 - static_cast<double>(threshold);
    return static_cast<float>(-log(1 + TINY - left * left) * 1.01 + 1e-3);  // rounded up
}

// The sum of the values of the threads before this one, in the block, and of all.
__device__ __forceinline__ int sum_before(int value, int* totals, int& all) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int sum = value;
    for (int step = 1; step < 32; step *= 2) {
        const int other = __shfl_up_sync(ALL, sum, step);
        if (lane >= step) sum += other;
    }
    if (lane == 31) totals[warp] = sum;
    __syncthreads();
    int before = sum - value;
    all = 0;
    for (int w = 0; w < WARPS; ++w) {
        if (w == warp) before += all;
        all += totals[w];
    }
    __syncthreads();
    return before;
}

struct Part {  // of a list, which one warp goes through 32 by 32
    int first, end;
};

__device__ __forceinline__ Part part(int count) {
    const int length = (count + THREADS - 1) / THREADS * 32;
    Part found;
    found.first = min(static_cast<int>(threadIdx.x / 32) * length, count);
    found.end = min(found.first + length, count);
    return found;
}

const int AT_ONCE = 8;  // loads that are under way together

// The rows that are candidates, in their order, with the bits of their scores inverted: the best is the least. They go
// to ``few`` where it has room for them, else to ``many``.
__device__ __forceinline__ int collect(const float* scores, int rows, uint2* few, uint2* many, int* totals) {
    const int lane = threadIdx.x % 32;
    const Part mine = part(rows);
    int found = 0, all = 0, place = 0;
    uint2* list = few;
    for (int pass = 0; pass < 2; ++pass) {
        for (int i = mine.first; i < mine.end; i += 32 * AT_ONCE) {
            float score[AT_ONCE];
#pragma unroll
            for (int k = 0; k < AT_ONCE; ++k) {
                const int row = i + 32 * k + lane;
                score[k] = row < mine.end ? scores[row] : 0.0f;
            }
#pragma unroll
            for (int k = 0; k < AT_ONCE; ++k) {
                const unsigned int passed = __ballot_sync(ALL, score[k] > 0.0f);
                if (pass == 1 && score[k] > 0.0f)
                    list[place + __popc(passed & ((1u << lane) - 1))] =
                        make_uint2(static_cast<unsigned int>(i + 32 * k + lane), ~__float_as_uint(score[k]));
                (pass == 0 ? found : place) += __popc(passed);
            }
        }
        if (pass == 0) {
            const int before = sum_before(lane == 0 ? found : 0, totals, all);
            place = __shfl_sync(ALL, before, 0);
            if (all > FEW) list = many;
        }
    }
    __syncthreads();
    return all;
}

// Bitonic sort in shared memory, by score and then by row: no two are equal. A warp's steps of at most 32 stay within
// 64 entries of its own.
__device__ __forceinline__ void sort_few(unsigned long long* list, int count) {
    int size = 2;
    while (size < count) size *= 2;
    for (int i = count + threadIdx.x; i < size; i += THREADS) list[i] = ~0ull;
    __syncthreads();
    for (int length = 2; length <= size; length *= 2) {
        for (int step = length / 2; step > 0; step /= 2) {
            for (int pair = threadIdx.x; pair < size / 2; pair += THREADS) {
                const int first = 2 * pair - (pair & (step - 1));
                const unsigned long long a = list[first], b = list[first + step];
                if ((a > b) == ((first & length) == 0)) {
                    list[first] = b;
                    list[first + step] = a;
                }
            }
            if (step > 32 || (step == 1 && length >= 64))
                __syncthreads();
            else
                __syncwarp();
        }
    }
    __syncthreads();
}

// One pass of a least-significant-digit radix sort, stable: warps own parts of the list, in order.
__device__ __forceinline__ void sort_by_digit(
    const uint2* from, uint2* to, int count, int shift, int* counters, int* totals) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int i = threadIdx.x; i < 256 * WARPS; i += THREADS) counters[i] = 0;
    __syncthreads();
    const Part mine = part(count);
    for (int i = mine.first; i < mine.end; i += 32) {
        const bool there = i + lane < mine.end;
        const int digit = there ? from[i + lane].y >> shift & 255 : 256;
        const unsigned int peers = __match_any_sync(ALL, digit);
        if (there && lane == __ffs(peers) - 1) counters[digit * WARPS + warp] += __popc(peers);
        __syncwarp();
    }
    __syncthreads();
    const int first = threadIdx.x * 8;  // 256 * WARPS counters are 8 for each thread
    int sum = 0;
    for (int i = 0; i < 8; ++i) sum += counters[first + i];
    int all;
    int before = sum_before(sum, totals, all);
    for (int i = 0; i < 8; ++i) {
        const int own = counters[first + i];
        counters[first + i] = before;
        before += own;
    }
    __syncthreads();
    for (int i = mine.first; i < mine.end; i += 32) {
        const bool there = i + lane < mine.end;
        const uint2 item = there ? from[i + lane] : make_uint2(0, 0);
        const int digit = there ? item.y >> shift & 255 : 256;
        const unsigned int peers = __match_any_sync(ALL, digit);
        const int start = there ? counters[digit * WARPS + warp] : 0;
        __syncwarp();
        if (there) {
            to[start + __popc(peers & ((1u << lane) - 1))] = item;
            if (lane == __ffs(peers) - 1) counters[digit * WARPS + warp] = start + __popc(peers);
        }
        __syncwarp();
    }
    __syncthreads();
}

// Which candidates of a round are kept, by one warp, 32 at a time: lane by lane those that no kept one before them
// overlaps. Within the 32, a candidate is settled once all that overlap it are; most wait for none or one.
__device__ __forceinline__ void settle(const unsigned int (*overlapped)[WORDS], int count, unsigned int* kept) {
    const int lane = threadIdx.x % 32;
    for (int word = 0; 32 * word < count; ++word) {
        const int own = 32 * word + lane;
        bool open = own < count;
        for (int w = 0; w < word; ++w)
            if (open && overlapped[own][w] & kept[w]) open = false;
        const unsigned int by = open ? overlapped[own][word] : 0;
        unsigned int chosen = 0, left = __ballot_sync(ALL, open);
        while (left) {
            if (by & chosen) open = false;
            const bool free = open && !(by & left);
            chosen |= __ballot_sync(ALL, free);
            if (free) open = false;
            left = __ballot_sync(ALL, open);
        }
        if (lane == 0) kept[word] = chosen;
        __syncwarp();
    }
}

template <bool TURNED>
__device__ __forceinline__ void suppress_all(const Candidates& candidates, int rows, const Kept& kept) {
    __shared__ float4 room[2048];  // what is sorted or the counters of the sort, then the boxes that were kept
    __shared__ int totals[WARPS];
    __shared__ unsigned int alive_bits[32];
    __shared__ float4 round_boxes[ROUND];
    __shared__ int round_classes[ROUND];
    __shared__ float round_angles[TURNED ? ROUND : 1];
    __shared__ unsigned int overlapped[ROUND][WORDS];  // by which of those before it
    __shared__ unsigned int settled[WORDS];
    const long long all = static_cast<long long>(blockIdx.x) * rows;
    uint2* list = kept.scratch + 2 * all;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int count = collect(candidates.scores + all, rows, reinterpret_cast<uint2*>(room), list, totals);
    uint2 entry = make_uint2(0, 0);
    if (count <= FEW) {
        sort_few(reinterpret_cast<unsigned long long*>(room), count);
        const uint2* sorted = reinterpret_cast<const uint2*>(room);
        if (threadIdx.x < count) entry = sorted[threadIdx.x];
        for (int i = THREADS + threadIdx.x; i < count; i += THREADS) list[i] = sorted[i];
        __syncthreads();
    } else {
        uint2* other = list + rows;
        for (int shift = 0; shift < 32; shift += 8) {
            sort_by_digit(list, other, count, shift, reinterpret_cast<int*>(room), totals);
            uint2* swapped = list;
            list = other;
            other = swapped;
        }
        entry = list[threadIdx.x];
    }
    float4* boxes = room;  // [LIMIT]
    int* classes = reinterpret_cast<int*>(room + LIMIT);
    // Chains of those that were kept, by class: a candidate is compared with its own alone. The newest come first.
    int* next = classes + LIMIT;
    int* newest = next + LIMIT;  // [CHAINS]
    float* angles = reinterpret_cast<float*>(newest + CHAINS);  // TURNED: [LIMIT]
    const float threshold = kept.threshold, far = TURNED ? reach(threshold) : 0.0f;
    for (int i = threadIdx.x; i < CHAINS; i += THREADS) newest[i] = -1;
    if (threadIdx.x < 32) alive_bits[lane] = 0;
    __syncthreads();
    const int most = min(kept.most, LIMIT);
    int found = 0;
    for (int start = 0; start < count && found < most; start += THREADS) {
        const int place = start + threadIdx.x;
        bool alive = place < count;
        float4 box = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        int class_id = 0, chain = 0;
        float angle = 0.0f;
        if (alive) {
            if (start > 0) entry = list[place];
            box = candidates.boxes[all + entry.x];
            class_id = candidates.classes[all + entry.x];
            chain = kept.agnostic ? 0 : class_id;
            if (TURNED) angle = candidates.angles[all + entry.x];
        }
        int compared = 0;  // with how many of those kept
        while (found < most) {
            if (alive && compared < found)
                for (int k = newest[chain & (CHAINS - 1)]; k >= compared && alive; k = next[k])
                    if (classes[k] == chain &&
                        (TURNED ? overlap(boxes[k], angles[k], box, angle, threshold, far)
                                : overlap(boxes[k], box, threshold)))
                        alive = false;
            compared = found;
            // The best that are left, at most a round of them, side by side.
            const unsigned int mine = __ballot_sync(ALL, alive);
            if (lane == 0) alive_bits[warp] = mine;
            __syncthreads();
            int sum = __popc(alive_bits[lane]);
            for (int step = 1; step < 32; step *= 2) {
                const int other = __shfl_up_sync(ALL, sum, step);
                if (lane >= step) sum += other;
            }
            const int left = __shfl_sync(ALL, sum, 31);
            if (left == 0) break;
            const int before = __shfl_sync(ALL, sum, max(warp - 1, 0));
            const int slot = (warp == 0 ? 0 : before) + __popc(mine & ((1u << lane) - 1));
            const bool chosen = alive && slot < ROUND;
            if (chosen) {
                round_boxes[slot] = box;
                round_classes[slot] = chain;
                if (TURNED) round_angles[slot] = angle;
            }
            __syncthreads();
            const int size = min(left, ROUND);
            for (int j = warp; j < size; j += WARPS) {
                const float4 own = round_boxes[j];
                const int own_class = round_classes[j];
                for (int i = lane; i / 32 <= j / 32; i += 32) {
                    const bool too_much =
                        i < j && round_classes[i] == own_class &&
                        (TURNED ? overlap(round_boxes[i], round_angles[i], own, round_angles[j], threshold, far)
                                : overlap(round_boxes[i], own, threshold));
                    const unsigned int bits = __ballot_sync(ALL, too_much);
                    if (lane == 0) overlapped[j][i / 32] = bits;
                }
            }
            __syncthreads();
            if (warp == 0) settle(overlapped, size, settled);
            __syncthreads();
            const int word = slot / 32;
            int k = found;  // the place of this thread's candidate among those kept
            for (int w = 0; 32 * w < size; ++w) {
                const unsigned int bits = settled[w];
                found += __popc(bits);
                if (chosen) k += __popc(w < word ? bits : w == word ? bits & ((1u << slot % 32) - 1) : 0);
            }
            if (chosen) {
                alive = false;
                if (settled[word] >> slot % 32 & 1 && k < most) {
                    boxes[k] = box;
                    classes[k] = chain;
                    if (TURNED) angles[k] = angle;
                    next[k] = atomicExch(&newest[chain & (CHAINS - 1)], k);
                    const long long out = static_cast<long long>(blockIdx.x) * kept.most + k;
                    kept.boxes[out] = box;
                    kept.scores[out] = __uint_as_float(~entry.y);
                    kept.classes[out] = class_id;
                    kept.rows[out] = entry.x;
                }
            }
            __syncthreads();
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) kept.counts[blockIdx.x] = min(found, most);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    suppress(const __grid_constant__ Candidates candidates, int rows, const __grid_constant__ Kept kept) {
    suppress_all<false>(candidates, rows, kept);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    suppress_oriented(const __grid_constant__ Candidates candidates, int rows, const __grid_constant__ Kept kept) {
    suppress_all<true>(candidates, rows, kept);
}

template <typename Element>
__device__ __forceinline__ void gather(const Head& head, const Kept& kept) {
    const int numbers = kept.counts[blockIdx.x] * head.extras;
    const Element* values = static_cast<const Element*>(head.values) + blockIdx.x * head.picture;
    for (int i = threadIdx.x; i < numbers; i += blockDim.x) {
        const long long slot = static_cast<long long>(blockIdx.x) * kept.most + i / head.extras;
        kept.extras[slot * head.extras + i % head.extras] =
            load(values + kept.rows[slot] * head.row + (head.first + i % head.extras) * head.column);
    }
}

extern "C" __global__ void __launch_bounds__(256)
    gather_f32(const __grid_constant__ Head head, const __grid_constant__ Kept kept) {
    gather<float>(head, kept);
}

extern "C" __global__ void __launch_bounds__(256)
    gather_f16(const __grid_constant__ Head head, const __grid_constant__ Kept kept) {
    gather<half_bits>(head, kept);
}
