// Pictures in memory into a network's input, in one launch: resized, placed, looked up in a table, laid out.
//
// The arithmetic is that of OpenCV's resize with INTER_LINEAR for 8 bits (half-pixel centres, coefficients of 11 bits),
// so the grey levels are its own. Neighbouring threads read neighbouring columns. A thread has four pixels, one below
// the other, whose reads are under way together: waiting for them one by one is what took the time. It reads the aligned
// words that hold bytes of its own, and no row without weight. Where several values of the output make a word, threads
// exchange pixels until each has such neighbours: reads and writes of a warp both lie together.
//
// Every picture has a descriptor in memory, so a captured launch serves pictures of any sizes.

struct Picture {  // as _PICTURE in vision/gpu.py
    const unsigned char* pixels;  // the first row; of NV12 the first of the luma
    const unsigned char* chroma;  // NV12: the first row of U and V in turn
    double scale_x, scale_y;      // pixels of the picture for one of the resized
    int pitch, chroma_pitch;      // bytes from row to row
    int width, height;
    int left, top;  // where the resized picture lies in the input; negative: cropped
    int resized_width, resized_height;
    int format;     // see below
    int packed;     // 0: all rows are there; 1, 2: so many for each row of the input that shows the picture, in turn
    int padding;    // the grey level beside the picture
    int reserved;
};

enum { NOTHING, BGR, RGB, NV12 };  // NOTHING: a row of the batch without a picture becomes zeros

struct Taps {
    int first, second;  // the two pixels between which lies the centre
    int w0, w1;         // their weights, in 2048ths
};

// Along the columns the last pixel counts alone at the edge; along the rows it counts twice, each time rounded.
__device__ __forceinline__ Taps taps(int index, double scale, int size, bool columns) {
    float fraction = __double2float_rn(__dsub_rn(__dmul_rn(index + 0.5, scale), 0.5));
    int first = __float2int_rd(fraction);
    fraction = __fsub_rn(fraction, static_cast<float>(first));
    if (columns && (first < 0 || first >= size - 1)) {
        first = first < 0 ? 0 : size - 1;
        fraction = 0.0f;
    }
    Taps found;
    found.w0 = __float2int_rn(__fmul_rn(__fsub_rn(1.0f, fraction), 2048.0f));
    found.w1 = __float2int_rn(__fmul_rn(fraction, 2048.0f));
    found.first = min(max(first, 0), size - 1);
    found.second = min(max(first + 1, 0), size - 1);
    return found;
}

struct Sums {
    int channel[3];
};

struct Bytes {  // of both pixels of a row, which lie side by side
    unsigned int low, high;
};

// One pixel of a row, for which two words do.
__device__ __forceinline__ unsigned int fetch_one(const unsigned char* row, const Taps& x) {
    const unsigned long long address = reinterpret_cast<unsigned long long>(row + 3ll * x.first);
    const unsigned int* words = reinterpret_cast<const unsigned int*>(address & ~3ull);
    const unsigned int offset = address & 3;
    return __funnelshift_r(words[0], words[offset > 1], offset * 8) & 0xffffff;
}

// Without a branch, so that the reads of several pixels do not wait for each other: instead of a word that is not
// needed, one that is comes again.
__device__ __forceinline__ Bytes fetch(const unsigned char* row, const Taps& x) {
    const unsigned long long address = reinterpret_cast<unsigned long long>(row + 3ll * x.first);
    const unsigned int* words = reinterpret_cast<const unsigned int*>(address & ~3ull);
    const unsigned int offset = address & 3;
    const unsigned int last = (offset + (x.w1 ? 5 : 2)) / 4;  // 0, 1 or 2
    const unsigned int word0 = words[0], word1 = words[min(last, 1u)], word2 = words[last];
    Bytes found;
    found.low = __funnelshift_r(word0, word1, offset * 8);
    found.high = __funnelshift_r(word1, word2, offset * 8);
    return found;
}

__device__ __forceinline__ Sums across(const Bytes& b, const Taps& x) {
    Sums sums;
    sums.channel[0] = x.w0 * (b.low & 255) + x.w1 * (b.low >> 24);
    sums.channel[1] = x.w0 * (b.low >> 8 & 255) + x.w1 * (b.high & 255);
    sums.channel[2] = x.w0 * (b.low >> 16 & 255) + x.w1 * (b.high >> 8 & 255);
    return sums;
}

__device__ __forceinline__ int level(int value) { return min(max(value, 0), 255); }

// One pixel of NV12 as BGR: BT.601 with limited range, in OpenCV's 20-bit arithmetic; a pair of U and V for 2 x 2.
__device__ __forceinline__ Sums converted(const unsigned char* luma, const unsigned char* chroma, int x) {
    const int y = max(luma[x] - 16, 0) * 1220542 + (1 << 19);
    const int u = chroma[x & ~1] - 128, v = chroma[x | 1] - 128;
    Sums pixel;
    pixel.channel[0] = level((y + 2116026 * u) >> 20);
    pixel.channel[1] = level((y - 409993 * u - 852492 * v) >> 20);
    pixel.channel[2] = level((y + 1673527 * v) >> 20);
    return pixel;
}

__device__ __forceinline__ Sums across_nv12(const Picture& p, long long row, const Taps& x) {
    const unsigned char *luma = p.pixels + row * p.pitch, *chroma = p.chroma + (row >> 1) * p.chroma_pitch;
    const Sums a = converted(luma, chroma, x.first), b = converted(luma, chroma, x.second);
    Sums sums;
    for (int c = 0; c < 3; ++c) sums.channel[c] = x.w0 * a.channel[c] + x.w1 * b.channel[c];
    return sums;
}

// The resized pixel as three bytes: the picture's channels in their order, from the lowest up.
__device__ __forceinline__ unsigned int mixed(const Sums& upper, const Sums& lower, const Taps& y) {
    unsigned int pixel = 0;
    for (int c = 0; c < 3; ++c) {
        const int value =
            ((y.w0 * (upper.channel[c] >> 4) >> 16) + (y.w1 * (lower.channel[c] >> 4) >> 16) + 2) >> 2;
        pixel |= static_cast<unsigned int>(level(value)) << 8 * c;
    }
    return pixel;
}

struct Rows {  // of the picture, in memory
    long long first, second;
};

__device__ __forceinline__ Rows rows(const Picture& p, const Taps& y, int shown_row) {
    Rows found;
    found.first = p.packed ? static_cast<long long>(shown_row) * p.packed : y.first;
    found.second = p.packed ? found.first + p.packed - 1 : y.second;
    return found;
}

// OpenCV's weights of red, green and blue, in 15 bits.
__device__ __forceinline__ unsigned int grey(unsigned int blue, unsigned int green, unsigned int red) {
    return (blue * 3735 + green * 19235 + red * 9798 + (1 << 14)) >> 15;
}

const int COLUMNS = 64, ROWS = 16, THREADS_OF_TILE = 256;
const int PIXELS = COLUMNS * ROWS / THREADS_OF_TILE;  // of a thread

struct Target {  // as _Target in vision/gpu.py
    void* batch;           // the network's input
    const void* table;     // [channels, 256]: what the grey levels become
    int width, height;
    int channels;          // 1 or 3
    int rgb;               // the network's order: 1 red first, 0 blue first
    int interleaved;       // 1: NHWC, 0: NCHW
};

// Neighbouring values of a row, as one word where the row is aligned for it.
template <typename Element, int ACROSS>
__device__ __forceinline__ void write(Element* out, const Element* values, int count, bool aligned) {
    if (aligned) {
        unsigned int word = 0;
        for (int i = 0; i < ACROSS; ++i) word |= static_cast<unsigned int>(values[i]) << 8 * sizeof(Element) * i;
        *reinterpret_cast<unsigned int*>(out) = word;
    } else {
        for (int i = 0; i < count; ++i) out[i] = values[i];
    }
}

// Before, each of 2 or 4 neighbouring threads has 4 pixels, one below the other; after it 4 that lie side by side, 2
// and 2 or all of them. They take turns with the rows.
template <int ACROSS>
__device__ __forceinline__ void exchange_pixels(unsigned int* pixels, int thread) {
#pragma unroll
    for (int step = 1; step < ACROSS; step *= 2) {
#pragma unroll
        for (int i = 0; i < PIXELS; ++i) {
            if (i & step) continue;
            const bool odd = thread & step;
            const unsigned int other = __shfl_xor_sync(0xffffffff, odd ? pixels[i] : pixels[i + step], step);
            pixels[i] = odd ? other : pixels[i];
            pixels[i + step] = odd ? pixels[i + step] : other;
        }
    }
}

// Element is an unsigned integer of the size of the input's dtype: values are looked up, never computed.
template <typename Element>
__device__ __forceinline__ void prepare(const Picture* pictures, const Target& target) {
    const int ACROSS = 4 / sizeof(Element);  // values in a word of the output
    const int STEP = THREADS_OF_TILE / COLUMNS;  // rows from one pixel of a thread to its next
    __shared__ Taps across_columns[COLUMNS];
    __shared__ Taps across_rows[ROWS];
    const Picture p = pictures[blockIdx.z];
    const int thread = threadIdx.x;
    int between = 0;  // whether some pixel lies between others
    if (p.format != NOTHING) {
        if (thread < COLUMNS) {
            across_columns[thread] = taps(blockIdx.x * COLUMNS + thread - p.left, p.scale_x, p.width, true);
            between = across_columns[thread].w1;
        } else if (thread < COLUMNS + ROWS) {
            const int row = thread - COLUMNS;
            across_rows[row] = taps(blockIdx.y * ROWS + row - p.top, p.scale_y, p.height, false);
            between = across_rows[row].w1;
        }
    }
    between = __syncthreads_or(between);
    const int column = thread % COLUMNS, row = thread / COLUMNS;
    const int own_x = blockIdx.x * COLUMNS + column - p.left;
    bool shown[PIXELS];
    unsigned int pixels[PIXELS];
#pragma unroll
    for (int i = 0; i < PIXELS; ++i) {
        const int y = blockIdx.y * ROWS + row + i * STEP;
        shown[i] = p.format != NOTHING && own_x >= 0 && own_x < p.resized_width && own_x + p.left < target.width &&
                   y < target.height && y >= p.top && y - p.top < p.resized_height;
        pixels[i] = p.padding * 0x010101u;
    }
    const int first_row = blockIdx.y * ROWS + row - max(p.top, 0);  // among those that are shown
    const Taps along_x = across_columns[column];
    if (p.format == NOTHING) {
        // nothing is read
    } else if (p.format == NV12) {
        for (int i = 0; i < PIXELS; ++i) {
            if (!shown[i]) continue;
            const Taps& along_y = across_rows[row + i * STEP];
            const Rows at = rows(p, along_y, first_row + i * STEP);
            const Sums upper = across_nv12(p, at.first, along_x);
            const Sums lower = along_y.w1 ? across_nv12(p, at.second, along_x) : upper;
            pixels[i] = mixed(upper, lower, along_y);
        }
    } else if (!between) {  // made smaller by an odd whole number, like 1080p for 640: pixels as they are
        unsigned int found[PIXELS];
#pragma unroll
        for (int i = 0; i < PIXELS; ++i) {
            const Rows at = rows(p, across_rows[row + i * STEP], first_row + i * STEP);
            found[i] = fetch_one(p.pixels + (shown[i] ? at.first * p.pitch : 0), along_x);
        }
#pragma unroll
        for (int i = 0; i < PIXELS; ++i)
            if (shown[i]) pixels[i] = found[i];
    } else {
        Bytes upper[PIXELS], lower[PIXELS];
#pragma unroll
        for (int i = 0; i < PIXELS; ++i) {
            const Taps& along_y = across_rows[row + i * STEP];
            const Rows at = rows(p, along_y, first_row + i * STEP);
            const long long first = shown[i] ? at.first * p.pitch : 0;
            upper[i] = fetch(p.pixels + first, along_x);
            lower[i] = fetch(p.pixels + (shown[i] && along_y.w1 ? at.second * p.pitch : first), along_x);
        }
#pragma unroll
        for (int i = 0; i < PIXELS; ++i) {
            const Taps& along_y = across_rows[row + i * STEP];
            if (shown[i]) pixels[i] = mixed(across(upper[i], along_x), across(lower[i], along_x), along_y);
        }
    }
    exchange_pixels<ACROSS>(pixels, thread);
    const int x = blockIdx.x * COLUMNS + column / ACROSS * ACROSS;
    if (x >= target.width) return;
    const Element* table = static_cast<const Element*>(target.table);
    const long long plane = static_cast<long long>(target.width) * target.height;
    Element* picture = static_cast<Element*>(target.batch) + blockIdx.z * plane * target.channels;
    const bool reversed = (p.format == RGB) != (target.rgb != 0);
    const bool aligned = target.width % ACROSS == 0;
    const int count = min(ACROSS, target.width - x);
#pragma unroll
    for (int i = 0; i < PIXELS; i += ACROSS) {
        const int y = blockIdx.y * ROWS + row + (i + column % ACROSS) * STEP;
        if (y >= target.height) break;
        Element values[3][ACROSS];
#pragma unroll
        for (int k = 0; k < ACROSS; ++k) {
            const unsigned int pixel = pixels[i + k];
            const unsigned int low = pixel & 255, middle = pixel >> 8 & 255, high = pixel >> 16;
            if (p.format == NOTHING) {
                for (int c = 0; c < 3; ++c) values[c][k] = 0;
            } else if (target.channels == 1) {
                values[0][k] = table[p.format == RGB ? grey(high, middle, low) : grey(low, middle, high)];
            } else {
                values[0][k] = table[reversed ? high : low];
                values[1][k] = table[256 + middle];
                values[2][k] = table[512 + (reversed ? low : high)];
            }
        }
        const long long place = static_cast<long long>(y) * target.width + x;
        if (target.channels == 1) {
            write<Element, ACROSS>(picture + place, values[0], count, aligned);
        } else if (target.interleaved) {
            for (int k = 0; k < count; ++k)
                for (int c = 0; c < 3; ++c) picture[(place + k) * 3 + c] = values[c][k];
        } else {
            for (int c = 0; c < 3; ++c)
                write<Element, ACROSS>(picture + place + c * plane, values[c], count, aligned);
        }
    }
}

extern "C" __global__ void __launch_bounds__(256, 5)
    prepare_1(const Picture* pictures, const __grid_constant__ Target target) {
    prepare<unsigned char>(pictures, target);
}

extern "C" __global__ void __launch_bounds__(256, 5)
    prepare_2(const Picture* pictures, const __grid_constant__ Target target) {
    prepare<unsigned short>(pictures, target);
}

extern "C" __global__ void __launch_bounds__(256, 5)
    prepare_4(const Picture* pictures, const __grid_constant__ Target target) {
    prepare<unsigned int>(pictures, target);
}
