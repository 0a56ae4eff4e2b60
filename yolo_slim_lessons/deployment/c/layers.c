/* Layers =========================================================================================================== */

/* Channels of some pixels, 16 bytes at a time where they come in sixteens. */
static void copy(int pixels, int channels, int in_step, int out_step, const uint8_t *input, uint8_t *output)
{
    for (int p = 0; p < pixels; p++, input += in_step, output += out_step)
        if (channels % 16 == 0)
            for (int c = 0; c < channels; c += 16)
                memcpy(output + c, input + c, 16);
        else
            memcpy(output, input, (size_t)channels);
}

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
            copy(width, channels, step, channels, from, to);
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

OPTIONAL void add(const Sum *layer, const uint8_t *first, const uint8_t *second, uint8_t *output)
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

OPTIONAL void average(const Average *layer, const uint8_t *input, uint8_t *output)
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
