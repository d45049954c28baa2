// Pictures in memory into a network's input, in one launch: resized, placed, looked up in a table, laid out.
//
// The arithmetic is that of OpenCV's resize with INTER_LINEAR for 8 bits (half-pixel centres, coefficients of 11 bits),
// so the grey levels are its own. Neighbouring threads take neighbouring columns: reads of a warp lie together, and so do
// its writes. A thread reads the aligned words that hold its bytes and no others, and no row that has no weight.
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

// Both pixels of a row, weighted: three bytes for each, which lie side by side.
__device__ __forceinline__ Sums across(const unsigned char* row, const Taps& x) {
    const unsigned char* start = row + 3ll * x.first;
    const unsigned long long address = reinterpret_cast<unsigned long long>(start);
    const unsigned int* words = reinterpret_cast<const unsigned int*>(address & ~3ull);
    const unsigned int offset = address & 3;
    const unsigned int end = offset + (x.w1 ? 6 : 3);
    const unsigned int word0 = words[0];
    const unsigned int word1 = end > 4 ? words[1] : 0;
    const unsigned int word2 = end > 8 ? words[2] : 0;
    const unsigned int low = __funnelshift_r(word0, word1, offset * 8);
    const unsigned int high = __funnelshift_r(word1, word2, offset * 8);
    Sums sums;
    sums.channel[0] = x.w0 * (low & 255) + x.w1 * (low >> 24);
    sums.channel[1] = x.w0 * (low >> 8 & 255) + x.w1 * (high & 255);
    sums.channel[2] = x.w0 * (low >> 16 & 255) + x.w1 * (high >> 8 & 255);
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

__device__ __forceinline__ Sums across_nv12(const unsigned char* luma, const unsigned char* chroma, const Taps& x) {
    const Sums a = converted(luma, chroma, x.first), b = converted(luma, chroma, x.second);
    Sums sums;
    for (int c = 0; c < 3; ++c) sums.channel[c] = x.w0 * a.channel[c] + x.w1 * b.channel[c];
    return sums;
}

// The resized pixel as three bytes: the picture's channels in their order, from the lowest up.
__device__ __forceinline__ unsigned int resized(const Picture& p, const Taps& x, const Taps& y, int shown_row) {
    const long long row0 = p.packed ? static_cast<long long>(shown_row) * p.packed : y.first;
    const long long row1 = p.packed ? row0 + p.packed - 1 : y.second;
    Sums upper, lower;
    if (p.format == NV12) {
        upper = across_nv12(p.pixels + row0 * p.pitch, p.chroma + (row0 >> 1) * p.chroma_pitch, x);
        lower = y.w1 ? across_nv12(p.pixels + row1 * p.pitch, p.chroma + (row1 >> 1) * p.chroma_pitch, x) : upper;
    } else {
        upper = across(p.pixels + row0 * p.pitch, x);
        lower = y.w1 ? across(p.pixels + row1 * p.pitch, x) : upper;
    }
    unsigned int pixel = 0;
    for (int c = 0; c < 3; ++c) {
        const int value =
            ((y.w0 * (upper.channel[c] >> 4) >> 16) + (y.w1 * (lower.channel[c] >> 4) >> 16) + 2) >> 2;
        pixel |= static_cast<unsigned int>(level(value)) << 8 * c;
    }
    return pixel;
}

// OpenCV's weights of red, green and blue, in 15 bits.
__device__ __forceinline__ unsigned int grey(unsigned int blue, unsigned int green, unsigned int red) {
    return (blue * 3735 + green * 19235 + red * 9798 + (1 << 14)) >> 15;
}

const int COLUMNS = 64, ROWS = 16, THREADS_Y = 4;

struct Target {  // as _Target in vision/gpu.py
    void* batch;           // the network's input
    const void* table;     // [channels, 256]: what the grey levels become
    int width, height;
    int channels;          // 1 or 3
    int rgb;               // the network's order: 1 red first, 0 blue first
    int interleaved;       // 1: NHWC, 0: NCHW
};

// Element is an unsigned integer of the size of the input's dtype: values are looked up, never computed.
template <typename Element>
__device__ __forceinline__ void prepare(const Picture* pictures, const Target& target) {
    __shared__ Taps across_columns[COLUMNS];
    __shared__ Taps across_rows[ROWS];
    const Picture p = pictures[blockIdx.z];
    const int thread = threadIdx.y * COLUMNS + threadIdx.x;
    if (p.format != NOTHING) {
        if (thread < COLUMNS) {
            across_columns[thread] = taps(blockIdx.x * COLUMNS + thread - p.left, p.scale_x, p.width, true);
        } else if (thread < COLUMNS + ROWS) {
            const int row = thread - COLUMNS;
            across_rows[row] = taps(blockIdx.y * ROWS + row - p.top, p.scale_y, p.height, false);
        }
    }
    __syncthreads();
    const int x = blockIdx.x * COLUMNS + threadIdx.x;
    if (x >= target.width) return;
    const Taps along_x = across_columns[threadIdx.x];
    const bool column_shown = x >= p.left && x - p.left < p.resized_width;
    unsigned int pixels[ROWS / THREADS_Y];
#pragma unroll
    for (int i = 0; i < ROWS / THREADS_Y; ++i) {
        const int tile_row = threadIdx.y + i * THREADS_Y;
        const int y = blockIdx.y * ROWS + tile_row;
        pixels[i] = p.padding * 0x010101u;
        if (p.format != NOTHING && column_shown && y < target.height && y >= p.top && y - p.top < p.resized_height)
            pixels[i] = resized(p, along_x, across_rows[tile_row], y - max(p.top, 0));
    }
    Element* batch = static_cast<Element*>(target.batch);
    const Element* table = static_cast<const Element*>(target.table);
    const long long plane = static_cast<long long>(target.width) * target.height;
    const bool reversed = (p.format == RGB) != (target.rgb != 0);
#pragma unroll
    for (int i = 0; i < ROWS / THREADS_Y; ++i) {
        const int y = blockIdx.y * ROWS + threadIdx.y + i * THREADS_Y;
        if (y >= target.height) break;
        const unsigned int low = pixels[i] & 255, middle = pixels[i] >> 8 & 255, high = pixels[i] >> 16;
        const long long place = static_cast<long long>(y) * target.width + x;
        Element* out = batch + blockIdx.z * plane * target.channels;
        if (target.channels == 1) {
            const unsigned int one = p.format == RGB ? grey(high, middle, low) : grey(low, middle, high);
            out[place] = p.format == NOTHING ? Element(0) : table[one];
            continue;
        }
        const unsigned int levels[3] = {reversed ? high : low, middle, reversed ? low : high};
#pragma unroll
        for (int c = 0; c < 3; ++c)
            out[target.interleaved ? place * 3 + c : place + c * plane] =
                p.format == NOTHING ? Element(0) : table[c * 256 + levels[c]];
    }
}

extern "C" __global__ void __launch_bounds__(256, 6)
    prepare_1(const Picture* pictures, const __grid_constant__ Target target) {
    prepare<unsigned char>(pictures, target);
}

extern "C" __global__ void __launch_bounds__(256, 6)
    prepare_2(const Picture* pictures, const __grid_constant__ Target target) {
    prepare<unsigned short>(pictures, target);
}

extern "C" __global__ void __launch_bounds__(256, 6)
    prepare_4(const Picture* pictures, const __grid_constant__ Target target) {
    prepare<unsigned int>(pictures, target);
}
