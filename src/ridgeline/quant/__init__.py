"""Weight formats: how a row of weights is packed into bytes, and its exact meaning in float32."""
