"""The HTTP server: OpenAI's and TGI's routes over one EngineClient. A thin translator: parse, submit, stream."""
