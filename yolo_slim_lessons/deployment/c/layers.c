/* What a layer is ================================================================================================== */

/* A picture is bytes: the channels of a pixel lie side by side, and pixels row by row. From a pixel to the next are
   "step" bytes: more than it has channels, where it is a part of a wider one. So splitting and concatenating is no
   work: each layer writes its part where the whole is read. */

/* An activation function: from a number of 16 bits to the byte that the next layer reads. Beyond first and last it is
   constant. In between it is a straight line, or a table with an entry for every 2^shift numbers; within an entry the
   result changes at most once, where the entry has its cut, to the value of the entry that follows. */
typedef struct {
    int32_t first, last;
    int shift;
    int32_t slope, offset;        /* of a line */
    const uint8_t *values, *cuts; /* of a table; 0 for a line */
} Function;

/* Weights lie in blocks of 16 output channels, the rest in a narrower one, for a processor that computes as many at
   once: four weights of each channel, which meet four neighbouring bytes, then the next four. Each row of a window is
   filled up with zeros to a multiple of four. Weights of up to 4 bits lie two in a byte. */
typedef struct {
    int in_height, in_width, in_channels, in_step; /* channels of one group */
    int out_height, out_width, out_channels, out_step;
    int groups, size, stride, padding;
    int band;            /* rows of output for which the input is copied once; 0 where it can stay where it is */
    uint8_t zero_point;  /* the byte that stands for 0 in the input */
    uint8_t packed;      /* whether weights lie two in a byte */
    const int8_t *weights;
    const int32_t *bias; /* without what the zero point adds to each sum */
    const uint32_t *multiplier; /* sum * multiplier / 2^shift is what the function reads */
    const uint8_t *shift;
    const Function *function;
} Convolution;

typedef struct {
    int pixels, channels, first_step, second_step, out_step;
    int zero_point, highest; /* of the grid that both summands and the result lie on */
} Sum;

typedef struct {
    int pixels, channels, in_step;
    int zero_point, new_zero_point, highest;
    int64_t numerator, denominator; /* their ratio turns a sum over all pixels into the mean on the new grid */
} Average;

enum { LANES = 16 }; /* output channels of a block */

#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif

/* Multiply and add ================================================================================================= */

/* One window for each of up to PIXELS outputs: "rows" rows of "length" bytes, "pitch" bytes from one to the next. */
typedef struct {
    const uint8_t *start[8];
    int count, rows, length, pitch;
} Windows;

/* multiply() computes sums[p][c] = bias[c] + all products of window p and the weights of channel c, for a block of
   "width" channels. Whatever the processor, these are the same integers: no sum of ours leaves 32 bits, which was
   proven from the weights when this file was written. */

#if !defined(MODEL_PORTABLE) && defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512DQ__) \
    && defined(__AVX512VL__)
#define MODEL_AVX512
#include <immintrin.h>
enum { PIXELS = 8 };

INLINE __m512i load_weights(const int8_t *weights, __mmask16 lanes, int packed)
{
    if (!packed)
        return _mm512_maskz_loadu_epi32(lanes, weights);
    const __m512i pairs = _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi16(lanes, weights));
    const __m512i low = _mm512_and_si512(pairs, _mm512_set1_epi16(0x000F));
    const __m512i high = _mm512_and_si512(_mm512_slli_epi16(pairs, 4), _mm512_set1_epi16(0x0F00));
    const __m512i eight = _mm512_set1_epi8(8); /* (n ^ 8) - 8 is n with the sign of its 4 bits */
    return _mm512_sub_epi8(_mm512_xor_si512(_mm512_or_si512(low, high), eight), eight);
}

/* VPDPBUSD: 64 bytes times 64 weights, four products each added to 16 sums. "pixels" and "packed" are constants. */
INLINE void multiply_pixels(int pixels, int packed, const Windows *windows, const int8_t *weights, const int32_t *bias,
                            int width, int32_t sums[][LANES])
{
    const __mmask16 lanes = (__mmask16)((1u << width) - 1);
    const uint8_t *x[8];
    __m512i total[8];
    for (int p = 0; p < pixels; p++) {
        x[p] = windows->start[p < windows->count ? p : 0];
        total[p] = _mm512_maskz_loadu_epi32(lanes, bias);
    }
    for (int row = 0; row < windows->rows; row++) {
        for (int k = 0; k < windows->length; k += 4) {
            const __m512i four_weights = load_weights(weights, lanes, packed);
            weights += packed ? 2 * width : 4 * width;
            for (int p = 0; p < pixels; p++) {
                int32_t four_bytes;
                memcpy(&four_bytes, x[p] + k, 4);
                total[p] = _mm512_dpbusd_epi32(total[p], _mm512_set1_epi32(four_bytes), four_weights);
            }
        }
        for (int p = 0; p < pixels; p++)
            x[p] += windows->pitch;
    }
    for (int p = 0; p < pixels; p++)
        _mm512_storeu_si512(sums[p], total[p]);
}

static void multiply(const Windows *windows, const int8_t *weights, int packed, const int32_t *bias, int width,
                     int32_t sums[][LANES])
{
    if (packed)
        multiply_pixels(8, 1, windows, weights, bias, width, sums);
    else if (windows->count > 4)
        multiply_pixels(8, 0, windows, weights, bias, width, sums);
    else
        multiply_pixels(4, 0, windows, weights, bias, width, sums);
}

#else
enum { PIXELS = 1 };

/* Weight number "i" of those that lie two in a byte. */
INLINE int unpacked(const int8_t *weights, int i)
{
    const int nibble = (i % 2 ? (uint8_t)weights[i / 2] >> 4 : weights[i / 2]) & 15;
    return (nibble ^ 8) - 8;
}

static void multiply(const Windows *windows, const int8_t *weights, int packed, const int32_t *bias, int width,
                     int32_t sums[][LANES])
{
    for (int p = 0; p < windows->count; p++) {
        const int8_t *w = weights;
        for (int c = 0; c < width; c++)
            sums[p][c] = bias[c];
        for (int row = 0; row < windows->rows; row++)
            for (int k = 0; k < windows->length; k += 4) {
                const uint8_t *x = windows->start[p] + row * windows->pitch + k;
                if (packed)
                    for (int c = 0; c < width; c++, w += 2)
                        sums[p][c] += x[0] * unpacked(w, 0) + x[1] * unpacked(w, 1) + x[2] * unpacked(w, 2)
                                      + x[3] * unpacked(w, 3);
                else
                    for (int c = 0; c < width; c++, w += 4)
                        sums[p][c] += x[0] * w[0] + x[1] * w[1] + x[2] * w[2] + x[3] * w[3];
            }
    }
}
#endif

/* From sums to bytes =============================================================================================== */

/* sum * multiplier / 2^shift, rounded to nearest, ties to even. */
INLINE int64_t rescale(int32_t sum, uint32_t multiplier, int shift)
{
    const int64_t product = (int64_t)sum * multiplier;
    const int64_t odd = (product >> shift) & 1;
    return (product + ((int64_t)1 << (shift - 1)) - 1 + odd) >> shift;
}

INLINE uint8_t look_up(const Function *function, int32_t x)
{
    const int32_t place = x - function->first;
    const int32_t entry = place >> function->shift;
    const int32_t rest = place & ((1 << function->shift) - 1);
    return function->values[entry + (rest >= function->cuts[entry])];
}

#if defined(MODEL_AVX512)

/* Eight sums at a time, in 64 bits. */
INLINE __m256i rescale_eight(__m256i sums, __m512i multiplier, __m512i shift, __m512i almost_half)
{
    const __m512i product = _mm512_mullo_epi64(_mm512_cvtepi32_epi64(sums), multiplier);
    const __m512i odd = _mm512_and_si512(_mm512_srav_epi64(product, shift), _mm512_set1_epi64(1));
    const __m512i rounded = _mm512_add_epi64(_mm512_add_epi64(product, almost_half), odd);
    return _mm512_cvtsepi64_epi32(_mm512_srav_epi64(rounded, shift));
}

static void finish(const Convolution *layer, int channel, int width, int count, int32_t sums[][LANES], uint8_t *output)
{
    const Function function = *layer->function;
    const __mmask16 lanes = (__mmask16)((1u << width) - 1);
    const __m512i multipliers = _mm512_maskz_loadu_epi32(lanes, layer->multiplier + channel);
    const __m128i shifts = _mm_maskz_loadu_epi8(lanes, layer->shift + channel);
    __m512i multiplier[2], shift[2], almost_half[2];
    multiplier[0] = _mm512_cvtepu32_epi64(_mm512_castsi512_si256(multipliers));
    multiplier[1] = _mm512_cvtepu32_epi64(_mm512_extracti64x4_epi64(multipliers, 1));
    shift[0] = _mm512_cvtepu8_epi64(shifts);
    shift[1] = _mm512_cvtepu8_epi64(_mm_srli_si128(shifts, 8));
    for (int i = 0; i < 2; i++) {
        const __m512i one = _mm512_set1_epi64(1);
        almost_half[i] = _mm512_sub_epi64(_mm512_srli_epi64(_mm512_sllv_epi64(one, shift[i]), 1), one);
    }
    for (int p = 0; p < count; p++, output += layer->out_step) {
        const __m512i sum = _mm512_loadu_si512(sums[p]);
        const __m256i low = rescale_eight(_mm512_castsi512_si256(sum), multiplier[0], shift[0], almost_half[0]);
        __m256i high = low;
        if (width > 8)
            high = rescale_eight(_mm512_extracti64x4_epi64(sum, 1), multiplier[1], shift[1], almost_half[1]);
        __m512i x = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
        x = _mm512_max_epi32(x, _mm512_set1_epi32(function.first));
        x = _mm512_min_epi32(x, _mm512_set1_epi32(function.last));
        if (function.values) {
            int32_t numbers[LANES];
            _mm512_storeu_si512(numbers, x);
            for (int c = 0; c < width; c++)
                output[c] = look_up(&function, numbers[c]);
        } else {
            x = _mm512_add_epi32(_mm512_mullo_epi32(x, _mm512_set1_epi32(function.slope)),
                                 _mm512_set1_epi32(function.offset));
            x = _mm512_srav_epi32(x, _mm512_set1_epi32(function.shift));
            _mm512_mask_cvtepi32_storeu_epi8(output, lanes, x);
        }
    }
}

#else

static void finish(const Convolution *layer, int channel, int width, int count, int32_t sums[][LANES], uint8_t *output)
{
    const Function *function = layer->function;
    for (int p = 0; p < count; p++, output += layer->out_step)
        for (int c = 0; c < width; c++) {
            const int64_t scaled = rescale(sums[p][c], layer->multiplier[channel + c], layer->shift[channel + c]);
            const int32_t x = (int32_t)(scaled < function->first  ? function->first
                                        : scaled > function->last ? function->last
                                                                  : scaled);
            output[c] = function->values ? look_up(function, x)
                                         : (uint8_t)((x * function->slope + function->offset) >> function->shift);
        }
}
#endif

/* Layers =========================================================================================================== */

static uint8_t border_rows[BORDER_BYTES]; /* the rows under a band of output, with the border around the picture */

static void copy_rows(const Convolution *layer, const uint8_t *input, int first, int count)
{
    const int width = layer->in_width, channels = layer->in_channels, step = layer->in_step;
    const int border = layer->padding * channels;
    uint8_t *to = border_rows;
    for (int y = first; y < first + count; y++) {
        if (y < 0 || y >= layer->in_height) {
            memset(to, layer->zero_point, (size_t)(width * channels + 2 * border));
            to += width * channels + 2 * border;
            continue;
        }
        const uint8_t *from = input + y * width * step;
        memset(to, layer->zero_point, (size_t)border);
        to += border;
        if (step == channels)
            memcpy(to, from, (size_t)(width * channels));
        else
            for (int x = 0; x < width; x++)
                memcpy(to + x * channels, from + x * step, (size_t)channels);
        to += width * channels;
        memset(to, layer->zero_point, (size_t)border);
        to += border;
    }
}

/* All output channels of one group, for a few pixels that lie side by side in the output. */
static void compute_pixels(const Convolution *layer, int group, const Windows *windows, uint8_t *output)
{
    int32_t sums[PIXELS][LANES];
    const int depth = windows->rows * windows->length;
    const int8_t *weights = layer->weights + (group * layer->out_channels * depth >> layer->packed);
    for (int c = 0; c < layer->out_channels; c += LANES) {
        const int channel = group * layer->out_channels + c;
        const int width = layer->out_channels - c < LANES ? layer->out_channels - c : LANES;
        multiply(windows, weights, layer->packed, layer->bias + channel, width, sums);
        finish(layer, channel, width, windows->count, sums, output + channel);
        weights += depth * width >> layer->packed;
    }
}

/* The windows of "pixels" outputs, "across" in a row, whose first byte is at "start". */
static void compute_band(const Convolution *layer, int group, const uint8_t *start, int pixels, int across, int pitch,
                         int step, uint8_t *output)
{
    Windows windows = {.rows = layer->size, .pitch = pitch, .length = (layer->size * layer->in_channels + 3) & ~3};
    int x = 0;
    for (int done = 0; done < pixels; done += windows.count) {
        for (windows.count = 0; windows.count < PIXELS && done + windows.count < pixels; windows.count++) {
            windows.start[windows.count] = start + x * step;
            if (++x == across) {
                x = 0;
                start += layer->stride * pitch;
            }
        }
        compute_pixels(layer, group, &windows, output);
        output += windows.count * layer->out_step;
    }
}

static void convolve(const Convolution *layer, const uint8_t *input, uint8_t *output)
{
    const int pitch = (layer->in_width + 2 * layer->padding) * layer->in_channels;
    for (int group = 0; group < layer->groups; group++, input += layer->in_channels) {
        if (!layer->band) {
            const int pixels = layer->out_height * layer->out_width;
            compute_band(layer, group, input, pixels, pixels, 0, layer->in_step, output);
            continue;
        }
        for (int y = 0; y < layer->out_height; y += layer->band) {
            const int rows = layer->out_height - y < layer->band ? layer->out_height - y : layer->band;
            copy_rows(layer, input, y * layer->stride - layer->padding, (rows - 1) * layer->stride + layer->size);
            compute_band(layer, group, border_rows, rows * layer->out_width, layer->out_width, pitch,
                         layer->stride * layer->in_channels, output + y * layer->out_width * layer->out_step);
        }
    }
}

static inline void add(const Sum *layer, const uint8_t *first, const uint8_t *second, uint8_t *output)
{
    for (int p = 0; p < layer->pixels; p++) {
        for (int c = 0; c < layer->channels; c++) {
            const int sum = first[c] + second[c] - layer->zero_point;
            output[c] = (uint8_t)(sum < 0 ? 0 : sum > layer->highest ? layer->highest : sum);
        }
        first += layer->first_step;
        second += layer->second_step;
        output += layer->out_step;
    }
}

static inline void average(const Average *layer, const uint8_t *input, uint8_t *output)
{
    for (int c = 0; c < layer->channels; c++) {
        int32_t sum = 0;
        for (int p = 0; p < layer->pixels; p++)
            sum += input[p * layer->in_step + c] - layer->zero_point;
        const int64_t scaled = sum * layer->numerator;
        int64_t mean = scaled / layer->denominator, rest = scaled % layer->denominator;
        if (rest < 0) { /* C rounds towards zero; we need the integer below */
            mean--;
            rest += layer->denominator;
        }
        if (2 * rest > layer->denominator || (2 * rest == layer->denominator && mean % 2))
            mean++;
        mean += layer->new_zero_point;
        output[c] = (uint8_t)(mean < 0 ? 0 : mean > layer->highest ? layer->highest : mean);
    }
}

static inline void copy(int pixels, int channels, int in_step, int out_step, const uint8_t *input, uint8_t *output)
{
    for (int p = 0; p < pixels; p++)
        memcpy(output + p * out_step, input + p * in_step, (size_t)channels);
}

/* The sums of the last layer, moved to one scale; returns the place of the largest. */
static int classify(const Convolution *layer, const int32_t *factor, const uint8_t *input, int64_t *logits)
{
    int32_t sums[PIXELS][LANES];
    int best = 0;
    Windows windows = {.count = 1, .rows = 1, .length = (layer->in_channels + 3) & ~3, .start = {input}};
    const int8_t *weights = layer->weights;
    for (int c = 0; c < layer->out_channels; c += LANES) {
        const int width = layer->out_channels - c < LANES ? layer->out_channels - c : LANES;
        multiply(&windows, weights, layer->packed, layer->bias + c, width, sums);
        for (int i = 0; i < width; i++)
            logits[c + i] = (int64_t)sums[0][i] * factor[c + i];
        weights += windows.length * width >> layer->packed;
    }
    for (int c = 1; c < layer->out_channels; c++)
        if (logits[c] > logits[best])
            best = c;
    return best;
}
