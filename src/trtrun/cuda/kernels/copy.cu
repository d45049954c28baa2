// Copies up to eight small tensors between page-locked host memory and device memory in one launch.
//
// blockIdx.y chooses the tensor. Each thread moves four 16-byte words, loaded before any is stored, so that four reads
// over PCIe are under way at once. All addresses are 16-byte aligned; the last bytes that fill no word go one by one.

struct Copies {
    uint4* target[8];
    const uint4* source[8];
    unsigned int nbytes[8];
};

extern "C" __global__ void __launch_bounds__(256) copy_small(const __grid_constant__ Copies copies) {
    uint4* target = copies.target[blockIdx.y];
    const uint4* source = copies.source[blockIdx.y];
    const unsigned int nbytes = copies.nbytes[blockIdx.y];
    const unsigned int words = nbytes / 16;
    const unsigned int first = blockIdx.x * 1024 + threadIdx.x;
    uint4 word[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
        if (first + i * 256 < words) word[i] = source[first + i * 256];
#pragma unroll
    for (int i = 0; i < 4; ++i)
        if (first + i * 256 < words) target[first + i * 256] = word[i];
    if (blockIdx.x == 0 && threadIdx.x < nbytes % 16)
        reinterpret_cast<unsigned char*>(target)[words * 16 + threadIdx.x] =
            reinterpret_cast<const unsigned char*>(source)[words * 16 + threadIdx.x];
}
